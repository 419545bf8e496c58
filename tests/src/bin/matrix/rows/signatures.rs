//! Signing what is in the cache.

use crate::outcome::{Outcome, Verdict};
use crate::trial::Trial;

/// How often two re-signings meet: a server that ignores conditions rarely loses a signature in the first round.
const ROUNDS: usize = 3;

/// The note about a server that tests a condition and then writes.
const NOT_ATOMIC: &str = "the server tests If-Match and writes in two steps, so both writes may succeed and one signature \
                          is lost; run the second re-signing again";

/// The note about a server that replaces an object while others read it.
const TORN_READ: &str = "the server returns a part of an object that is being replaced: s3-push refuses the narinfo, and a \
                         second run adds what is missing";

pub(super) fn second_key(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    trial.run("s3-pull --narinfo --all \"$C\" | cache-sign -k second.sec | s3-push -q \"$C\"")?;
    for key in ["key", "second"] {
        trial.pull(&format!("s3-pull -r --root $OUT --trusted-public-key-file {key}.pub \"$C\" \"$TOP\""))?;
    }
    let signatures = count(trial, "Sig: ")?;
    if signatures != 2 * trial.fixture.paths.len() {
        return Err(format!("{signatures} signatures of {} paths", trial.fixture.paths.len()));
    }
    Ok(Outcome::ok())
}

pub(super) fn two_at_once(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    for round in 0..ROUNDS {
        let both = trial.run(&format!(
            "rm -f [ab]{round}.*; s3-pull --narinfo --all \"$C\" > text; for key in a b; do \
             cache-sign keygen ${{key}}{round}.example.org-1 ${{key}}{round}.sec ${{key}}{round}.pub; \
             cache-sign -k ${{key}}{round}.sec < text > text.$key; done; \
             s3-push -q \"$C\" < text.a & s3-push -q \"$C\" < text.b; wait $!; rm [ab]{round}.sec [ab]{round}.pub"
        ));
        match both {
            Ok(_) => {}
            Err(error) if error.contains("truncated") => return Ok(Outcome::not_supported(TORN_READ)),
            Err(error) => return Err(error),
        }
        let (found, expected) = (count(trial, "Sig: ")?, (3 + 2 * round) * trial.fixture.paths.len());
        if found != expected {
            if !trial.server.is_atomic {
                return Ok(Outcome::not_supported(NOT_ATOMIC));
            }
            return Err(format!("{found} of {expected} signatures are there after round {}", round + 1));
        }
    }
    if super::conditions::put_if_match(trial)?.verdict != Verdict::Ok {
        return Ok(Outcome::works_around("the server ignores If-Match on PutObject; s3-push reads narinfos back"));
    }
    if !trial.server.is_atomic {
        return Ok(Outcome::not_supported(NOT_ATOMIC));
    }
    Ok(Outcome::ok())
}

/// Counts the lines of all narinfos that begin with a field.
fn count(trial: &Trial<'_>, field: &str) -> Result<usize, String> {
    let text = trial.run("s3-pull --narinfo --all --no-verify-signatures \"$C\"")?;
    Ok(text.lines().filter(|line| line.starts_with(field)).count())
}
