//! Pins, checks and deletions.

use crate::outcome::Outcome;
use crate::trial::Trial;

/// A pin keeps the closure of its path, and only that.
pub(super) fn pin(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    trial.run("echo \"$TOP\" | s3-push pin -q \"$C\" main/1; head -n 1 paths | s3-push pin -q \"$C\" main/2")?;
    let pinned = trial.run("s3-pull pins -q \"$C\" main/1; s3-push unpin -q \"$C\" main/1; s3-pull pins -q \"$C\"")?;
    if !pinned.starts_with(&trial.fixture.top) || !pinned.trim_end().ends_with("main/2") {
        return Err(format!("the pins are {pinned:?}"));
    }
    Ok(Outcome::ok())
}

/// An intact cache has no findings. A NAR that is shorter than its FileSize is found in the listing.
pub(super) fn check(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    for options in ["", "--list-only"] {
        trial.run(&format!("s3-pull check {options} \"$C\""))?;
    }
    let path = damage_nar(trial, |bytes| bytes.truncate(bytes.len() - 1))?;
    require_finding(trial, "", &path)
}

/// A NAR of the right size with other bytes is found when it is read.
pub(super) fn check_nars(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    trial.run("s3-pull check --read-nars 1/1 \"$C\"")?;
    let path = damage_nar(trial, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1))?;
    trial.run("s3-pull check \"$C\"")?;
    require_finding(trial, "--read-nars 1/1", &path)
}

/// Replaces the NAR of the top path, and returns that path.
fn damage_nar(trial: &Trial<'_>, damage: impl Fn(&mut Vec<u8>)) -> Result<String, String> {
    let key = trial.run("s3-pull narinfo -q \"$C\" \"$TOP\" | sed -n 's/^URL: //p'")?;
    let key = key.trim();
    let mut bytes = trial.object("GET", key, &[], b"")?.success()?.body;
    damage(&mut bytes);
    trial.object("PUT", key, &[], &bytes)?.success()?;
    Ok(trial.fixture.top.clone())
}

/// Requires that a check fails and prints only that path.
fn require_finding(trial: &Trial<'_>, options: &str, path: &str) -> Result<Outcome, String> {
    let output = trial.sh(&format!("s3-pull check -q {options} \"$C\""));
    if output.status == 1 && output.text().trim() == path {
        return Ok(Outcome::ok());
    }
    Err(format!("exit status {}: {}{}", output.status, output.text(), output.stderr.trim()))
}

/// One path stays pinned; the other paths are deleted, several in a request. A collection then finds nothing to delete,
/// since the NARs have not been unneeded for a day.
pub(super) fn collect(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    let (kept, all) = (trial.fixture.paths[0].clone(), trial.fixture.paths.len());
    trial.run(&format!("echo {kept} | s3-push pin -q \"$C\" main/1"))?;
    let deleted = trial.run(
        "s3-pull dead -q --older-than 0s \"$C\" > dead; s3-push delete -q --now --max-delete 100% \"$C\" < dead; rm dead",
    )?;
    if deleted.lines().count() != all - 1 {
        return Err(format!("{} of {} paths were deleted", deleted.lines().count(), all - 1));
    }
    let collected = trial.run("s3-push collect -q --older-than 1h --max-delete 100% \"$C\"")?;
    let listed = trial.run("s3-pull --list --all \"$C\"")?;
    let nars = trial.keys()?.iter().filter(|key| key.starts_with("nar/")).count();
    if !collected.is_empty() || listed.trim() != kept || nars != all {
        return Err(format!("collected {collected:?}; paths {listed:?}; {nars} of {all} NARs"));
    }
    Ok(Outcome::ok())
}
