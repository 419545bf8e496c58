//! Publishing.

use std::io::Write as _;
use std::process::Stdio;
use std::{fs, thread};

use cache_tests::Random;
use serde_json::Value;

use crate::outcome::{Outcome, Verdict};
use crate::trial::Trial;

/// Size of a part in bytes, as in the options below.
const PART_SIZE: usize = 5 << 20;

pub(super) fn once(trial: &Trial<'_>) -> Result<Outcome, String> {
    let published = trial.push()?.lines().count();
    let keys = trial.keys()?;
    let (paths, expected) = (trial.fixture.paths.len(), 2 * trial.fixture.paths.len() + 1);
    if published != paths || keys.len() != expected {
        return Err(format!("{published} paths and {} objects instead of {paths} and {expected}", keys.len()));
    }
    Ok(Outcome::ok())
}

pub(super) fn again(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    let summary = summary(&trial.run("s3-push --no-nix --json \"$C\" < closure.tar")?)?;
    if summary["present"] != trial.fixture.paths.len() || summary["requests"].get("put").is_some() {
        return Err(format!("the second push wrote something: {summary}"));
    }
    Ok(Outcome::ok())
}

pub(super) fn missing(trial: &Trial<'_>) -> Result<Outcome, String> {
    let before = trial.run("s3-push --missing \"$C\" < paths")?;
    trial.push()?;
    let after = trial.run("s3-push --missing \"$C\" < paths")?;
    if before.lines().count() != trial.fixture.paths.len() || !after.is_empty() {
        return Err(format!("missing before: {before:?}; after: {after:?}"));
    }
    Ok(Outcome::ok())
}

pub(super) fn two_at_once(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.run("s3-push --no-nix \"$C\" < closure.tar > one & s3-push --no-nix \"$C\" < closure.tar > two; wait $!")?;
    trial.pull("s3-pull -r --root $OUT \"$C\" \"$TOP\"")?;
    Ok(Outcome::ok())
}

pub(super) fn large(trial: &Trial<'_>) -> Result<Outcome, String> {
    let size = usize::try_from(trial.large_size).map_err(|error| error.to_string())?;
    let bytes = Random::new(trial.large_size).bytes(size);
    trial.write("object", &bytes)?;
    trial.run("s3-push -q \"$C\" --key log/large < object")?;
    let found = trial.object("GET", "log/large", &[], b"")?.success()?;
    drop(fs::remove_file(trial.fixture.file("object")));
    if found.body != bytes {
        return Err(format!("the object has {} bytes, or others than were uploaded", found.body.len()));
    }
    Ok(Outcome::ok())
}

/// The push reads six of eight parts. Its memory holds two, so at least three are in the bucket when it is killed.
pub(super) fn resume(trial: &Trial<'_>) -> Result<Outcome, String> {
    let archive = fs::read(trial.fixture.file("large.tar")).map_err(|error| error.to_string())?;
    let mut command = trial.fixture.scratch.command("s3-push");
    trial.server.credentials.authorize(&mut command);
    command.args(["--no-nix", "--quiet", "--part-size", "5MiB", "--memory", "10MiB", &trial.url()]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut pipe = child.stdin.take().ok_or("no pipe to s3-push")?;
    let written = thread::scope(|scope| scope.spawn(|| pipe.write_all(&archive[..6 * PART_SIZE + (1 << 20)])).join());
    drop(child.kill());
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !matches!(written, Ok(Ok(()))) {
        return Err(format!("the first push failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let report = trial.run("s3-push --no-nix --json --part-size 5MiB \"$C\" < large.tar")?;
    let continued = summary(&report)?["partsContinued"].as_u64().unwrap_or_default();
    trial.run("s3-pull --nar \"$C\" \"$LARGE\" | cmp - <(nar-pack --root root \"$LARGE\")")?;
    if continued >= 3 {
        return Ok(Outcome::ok());
    }
    Ok(Outcome::works_around(
        "the server does not list the parts of the interrupted upload as S3 does; the push uploads the NAR from the start",
    ))
}

pub(super) fn repair(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    let nar = trial.keys()?.into_iter().find(|key| key.starts_with("nar/")).ok_or("no NAR")?;
    trial.object("DELETE", &nar, &[], b"")?.success()?;
    let report = trial.run("s3-push --no-nix --repair --json \"$C\" < closure.tar")?;
    let repaired = summary(&report)?["repaired"].as_u64().unwrap_or_default();
    if repaired == 0 {
        return Err(format!("the NAR was not repaired: {report}"));
    }
    trial.pull("s3-pull -r --root $OUT \"$C\" \"$TOP\"")?;
    if repaired == 1 {
        return Ok(Outcome::ok());
    }
    if super::conditions::put_if_none_match(trial)?.verdict == Verdict::Ok {
        return Err(format!("{repaired} NARs were repaired, but only one was missing"));
    }
    Ok(Outcome::works_around(
        "since If-None-Match is ignored, NARs that are there are sent again and count as repaired",
    ))
}

pub(super) fn versioned(trial: &Trial<'_>) -> Result<Outcome, String> {
    let body = b"<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>Enabled</Status></VersioningConfiguration>";
    let enabled = trial.s3.send("PUT", &format!("/{}?versioning=", trial.bucket), &[], body)?;
    if !(200..300).contains(&enabled.status) {
        return Ok(Outcome::not_supported(format!("versioning cannot be enabled ({})", enabled.error())));
    }
    trial.push()?;
    trial.sh("s3-pull --narinfo --all \"$C\" | cache-sign -k second.sec | s3-push \"$C\"").succeed()?;
    trial.pull("s3-pull -r --root $OUT \"$C\" \"$TOP\"")?;
    Ok(Outcome::ok())
}

/// Returns the summary at the end of a report in JSON.
fn summary(report: &str) -> Result<Value, String> {
    let last = report.lines().last().unwrap_or_default();
    let value: Value = serde_json::from_str(last).map_err(|error| format!("no summary: {error}"))?;
    Ok(value["summary"].clone())
}
