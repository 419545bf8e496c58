//! The installed Nix as the other client. Nix 2.8 of Debian has no `s3://`, so it reads a public bucket over `http://`.

use cache_tests::nix;

use crate::outcome::Outcome;
use crate::trial::Trial;
use cache_tests::s3::S3;

pub(super) const NO_NIX: &str = "Nix is not installed";

pub(super) fn reads(trial: &Trial<'_>) -> Result<Outcome, String> {
    if !nix::available() {
        return Ok(Outcome::not_run(NO_NIX));
    }
    trial.push()?;
    if let Some(outcome) = require_public(trial)? {
        return Ok(outcome);
    }
    copy_from(trial, &trial.http_url(), "")?;
    Ok(Outcome::ok())
}

/// Copies the closure from a URL with Nix, given assignments of environment variables, and compares it with what was published.
pub(super) fn copy_from(trial: &Trial<'_>, url: &str, environment: &str) -> Result<(), String> {
    let store = nix::fresh_store(&trial.fixture.scratch);
    let key = "--trusted-public-keys \"$(cat key.pub)\"";
    trial.run(&format!("{environment} nix copy {key} --from '{url}' --to '{store}' \"$TOP\""))?;
    trial.compare(store.rsplit('/').next().unwrap_or_default())
}

pub(super) fn writes(trial: &Trial<'_>) -> Result<Outcome, String> {
    if !nix::available() {
        return Ok(Outcome::not_run(NO_NIX));
    }
    let closure = nix::build(&trial.fixture.scratch);
    let script = format!(
        "rm -rf nix-cache out-nix; nix copy --to file://$PWD/nix-cache {top}; tar c -C nix-cache . | s3-push --no-nix \"$C\"; \
         s3-pull -r --no-verify-signatures --root out-nix \"$C\" {top}; \
         for path in $(nix-store -qR {top}); do cmp <(nix-store --dump $path) <(nix-store --dump out-nix$path); done",
        top = closure.top
    );
    let result = trial.run(&script);
    nix::delete(&trial.fixture.scratch, &closure);
    result.map(|_| Outcome::ok())
}

/// Lets anonymous clients read what was pushed. Returns the outcome if the server does not.
pub(super) fn require_public(trial: &Trial<'_>) -> Result<Option<Outcome>, String> {
    let has_policy = trial.make_public()?;
    if !has_policy && !is_readable(trial)? {
        return Ok(Some(Outcome::not_supported("the server has no bucket policies, and requires credentials")));
    }
    let narinfo = format!("{}.narinfo", &trial.fixture.top["/nix/store/".len()..][..32]);
    let asked = anonymous(trial).send("HEAD", &format!("/{}/{narinfo}", trial.bucket), &[], b"")?;
    if asked.status == 200 {
        return Ok(None);
    }
    Ok(Some(Outcome::not_supported(format!(
        "an anonymous HEAD gets {}, although the policy allows s3:GetObject; Nix sends HEAD first",
        asked.error()
    ))))
}

/// Returns whether anonymous clients may read.
fn is_readable(trial: &Trial<'_>) -> Result<bool, String> {
    Ok(anonymous(trial).send("GET", &format!("/{}/nix-cache-info", trial.bucket), &[], b"")?.status == 200)
}

/// Returns a client without credentials.
pub(super) fn anonymous(trial: &Trial<'_>) -> S3 {
    S3 { endpoint: trial.server.endpoint.clone(), credentials: None, region: trial.server.region.to_owned() }
}
