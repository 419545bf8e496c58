//! The Nix of Debian's testing release, which reads and writes `s3://`. It is built without a library for AWS credentials, so
//! it signs no requests: buckets must be public.

use cache_tests::{nix, unique};

use super::nix::{anonymous, require_public};
use crate::debian_testing;
use crate::outcome::Outcome;
use crate::trial::Trial;

/// Publishes the closure, and has Nix read it from the public bucket at `url`.
fn read(trial: &Trial<'_>, url: &str) -> Result<Outcome, String> {
    let nix = match debian_testing::nix() {
        Ok(nix) => nix,
        Err(error) => return Ok(Outcome::not_run(error)),
    };
    trial.push()?;
    if let Some(outcome) = require_public(trial)? {
        return Ok(outcome);
    }
    copy_and_compare(trial, nix, url)
}

/// Copies the closure from a cache into an empty store, and compares all trees.
fn copy_and_compare(trial: &Trial<'_>, nix: &debian_testing::Nix, url: &str) -> Result<Outcome, String> {
    let store = nix::fresh_store(&trial.fixture.scratch);
    let key = "--trusted-public-keys \"$(cat key.pub)\"";
    trial.run_anonymously(&format!("{} copy {key} --from \"{url}\" --to '{store}' \"$TOP\"", nix.program.display()))?;
    let name = store.rsplit('/').next().unwrap_or_default();
    let result = trial.compare(name);
    drop(cache_tests::remove_tree(&trial.fixture.file(name)));
    result.map(|()| Outcome::ok())
}

pub(super) fn reads_http(trial: &Trial<'_>) -> Result<Outcome, String> {
    read(trial, &trial.http_url())
}

pub(super) fn reads_s3(trial: &Trial<'_>) -> Result<Outcome, String> {
    read(trial, "$C")
}

/// What s3-pull writes as a cache archive is a cache in a directory once it is unpacked.
pub(super) fn reads_mirror(trial: &Trial<'_>) -> Result<Outcome, String> {
    let nix = match debian_testing::nix() {
        Ok(nix) => nix,
        Err(error) => return Ok(Outcome::not_run(error)),
    };
    trial.push()?;
    let mirror = unique("mirror-");
    trial.run(&format!("mkdir {mirror}; s3-pull -r --archive \"$C\" \"$TOP\" | tar x -C {mirror}"))?;
    let result = copy_and_compare(trial, nix, &format!("file://$PWD/{mirror}"));
    drop(cache_tests::remove_tree(&trial.fixture.file(&mirror)));
    result
}

/// Nix publishes the closure while s3-push publishes it too, with another compression. The cache must be intact then.
pub(super) fn writes(trial: &Trial<'_>) -> Result<Outcome, String> {
    let nix = match debian_testing::nix() {
        Ok(nix) => nix,
        Err(error) => return Ok(Outcome::not_run(error)),
    };
    if !allow_writes(trial)? {
        return Ok(Outcome::not_supported(
            "the server requires credentials to write, and this Nix is built without support for them",
        ));
    }
    let cache = unique("cache-");
    let both = trial.run(&format!(
        "mkdir {cache}; tar x -C {cache} < closure.tar; {nix} copy --from file://$PWD/{cache} --to \"$C\" \"$TOP\" & \
         s3-push --no-nix -q \"$C\" < closure.tar; wait $!",
        nix = nix.program.display()
    ));
    drop(cache_tests::remove_tree(&trial.fixture.file(&cache)));
    both?;
    trial.run("s3-pull check -q \"$C\"")?;
    trial.pull("s3-pull -r --root $OUT \"$C\" \"$TOP\"")?;
    Ok(Outcome::ok())
}

/// Lets anonymous clients write. Returns false if the server refuses.
fn allow_writes(trial: &Trial<'_>) -> Result<bool, String> {
    let bucket = &trial.bucket;
    let allow = |actions: &str, resource: &str| {
        format!(
            "{{\"Effect\": \"Allow\", \"Principal\": \"*\", \"Action\": [{actions}], \"Resource\": \"arn:aws:s3:::{resource}\"}}"
        )
    };
    let objects = allow("\"s3:GetObject\", \"s3:PutObject\"", &format!("{bucket}/*"));
    let listing = allow("\"s3:ListBucket\"", bucket);
    // A server without policies may let everyone write.
    trial.set_policy(&format!("{{\"Version\": \"2012-10-17\", \"Statement\": [{objects}, {listing}]}}"))?;
    Ok(anonymous(trial).send("PUT", &format!("/{bucket}/log/anonymous"), &[], b"text")?.status == 200)
}
