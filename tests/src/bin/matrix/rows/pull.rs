//! Reading.

use cache_tests::{random_seed, store_path};

use crate::outcome::Outcome;
use crate::trial::Trial;

pub(super) fn closure(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    trial.pull("s3-pull -r --root $OUT \"$C\" \"$TOP\"")?;
    Ok(Outcome::ok())
}

pub(super) fn absent(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.push()?;
    let path = store_path("absent", random_seed());
    let output = trial.sh(&format!("s3-pull --root out-absent \"$C\" {path}"));
    if output.status == 1 && output.stderr.contains(&path) {
        return Ok(Outcome::ok());
    }
    Err(format!("exit status {}: {}", output.status, output.stderr.trim()))
}
