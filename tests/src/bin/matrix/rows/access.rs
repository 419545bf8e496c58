//! Users, anonymous readers, regions and the two forms of a bucket's address.

use cache_tests::{CommandOutput, Credentials};

use crate::outcome::Outcome;
use crate::servers::Users;
use crate::trial::Trial;

pub(super) fn anonymous(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    let has_policy = trial.make_public()?;
    let script = format!("rm -rf out-anonymous; s3-pull -r --root out-anonymous '{}' \"$TOP\"", trial.http_url());
    let result = trial.anonymous_sh(&script).succeed().and_then(|_| trial.compare("out-anonymous"));
    match (has_policy, result) {
        (true, Ok(())) => Ok(Outcome::ok()),
        (false, Ok(())) => Ok(Outcome::works_around("without bucket policies, every client may read")),
        (false, Err(_)) => Ok(Outcome::not_supported("the server has no bucket policies, and requires credentials")),
        (true, Err(error)) => Err(error),
    }
}

/// Two users, each with one policy: one uploads, the other reads and cannot write.
pub(super) fn policies(trial: &Trial<'_>) -> Result<Outcome, String> {
    let Some(users) = &trial.server.users else {
        return Ok(Outcome::not_supported("the server has no users with policies"));
    };
    let uploader = add_user(trial, users, "--upload")?;
    sh_as(trial, &uploader, "s3-push --no-nix \"$C\" < closure.tar").succeed()?;
    let reader = add_user(trial, users, "--read-only")?;
    sh_as(trial, &reader, "rm -rf out-user; s3-pull -r --root out-user \"$C\" \"$TOP\"").succeed()?;
    trial.compare("out-user")?;
    if sh_as(trial, &reader, "echo x | s3-push -q \"$C\" --key log/x").status != 2 {
        return Err("the reader can write".to_owned());
    }
    Ok(Outcome::ok())
}

/// Creates a user who has only the policy of a document.
fn add_user(trial: &Trial<'_>, users: &Users, document: &str) -> Result<Credentials, String> {
    match users {
        Users::IdentityPolicies(add) => {
            // Without a principal, --read-only is a bucket policy for everyone; the policy of a user has none.
            let policy = trial.run(&format!("cache-policy {document} {}", trial.bucket))?;
            Ok(add(&policy.replace("\"Principal\": \"*\",", "")))
        }
        Users::BucketPolicies(add) => {
            let user = add();
            let script = format!("cache-policy {document} --principal-key-id {} {}", user.access_key, trial.bucket);
            trial.set_policy(&trial.run(&script)?)?.success()?;
            Ok(user)
        }
    }
}

/// Runs a script with the credentials of a user.
fn sh_as(trial: &Trial<'_>, user: &Credentials, script: &str) -> CommandOutput {
    trial.anonymous_sh(&format!(
        "export AWS_ACCESS_KEY_ID='{}' AWS_SECRET_ACCESS_KEY='{}'; {script}",
        user.access_key, user.secret_key
    ))
}

pub(super) fn region(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    let other = "C=\"${C/region=*/region=eu-north-1}\"; rm -rf out-region;";
    let output = trial.sh(&format!("{other} s3-pull -r --root out-region \"$C\" \"$TOP\""));
    if output.status == 0 {
        trial.compare("out-region")?;
        let is_redirected = output.stderr.contains("eu-north-1");
        return Ok(if is_redirected {
            Outcome::works_around("the response names the right region, and s3-pull repeats its reads there")
        } else {
            Outcome::ok()
        });
    }
    if output.stderr.contains("region") {
        return Ok(Outcome::works_around("the request is refused with a message about the region"));
    }
    Err(format!("the message does not name the region: {}", output.stderr.trim()))
}

/// The name of the bucket's host does not resolve here, so requests go to the server as to a proxy.
pub(super) fn virtual_host(trial: &Trial<'_>) -> Result<Outcome, String> {
    let Some(domain) = trial.server.domain else {
        return Ok(Outcome::not_run("the server was started for buckets in the path, which our URLs use by default"));
    };
    let proxy = trial.server.endpoint.as_str();
    let script = format!(
        "export http_proxy=http://{proxy}; C='s3://{}?endpoint=http://{domain}&region={}&addressing-style=virtual'; ",
        trial.bucket, trial.server.region
    );
    trial.run(&format!("{script} s3-push --no-nix \"$C\" < closure.tar"))?;
    if trial.keys()?.len() != 2 * trial.fixture.paths.len() + 1 {
        return Err("the objects are not in the bucket of the host name".to_owned());
    }
    trial.pull(&format!("{script} s3-pull -r --root $OUT \"$C\" \"$TOP\""))?;
    Ok(Outcome::ok())
}
