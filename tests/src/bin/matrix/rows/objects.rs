//! Keys, prefixes and listings.

use cache_tests::{Random, random_store_path};

use crate::outcome::Outcome;
use crate::trial::Trial;

/// A key of a build log whose derivation has a name with reserved characters, and the key as it is in a URL.
const RESERVED_KEY: [&str; 2] =
    ["log/0123456789abcdfghijklmnpqrsvwxyz-a+b=c?d.drv", "log/0123456789abcdfghijklmnpqrsvwxyz-a%2Bb%3Dc%3Fd.drv"];

/// More than the keys in a page of a listing.
const LISTED: usize = 1_005;

pub(super) fn key(trial: &Trial<'_>) -> Result<Outcome, String> {
    trial.run("echo text | s3-push -q \"$C\" --key log/text")?;
    let found = trial.object("GET", "log/text", &[], b"")?.success()?;
    if found.body != b"text\n" {
        return Err("the object has other bytes".to_owned());
    }
    Ok(Outcome::ok())
}

pub(super) fn reserved_characters(trial: &Trial<'_>) -> Result<Outcome, String> {
    let [key, encoded] = RESERVED_KEY;
    let pushed = trial.run(&format!("echo text | s3-push -q \"$C\" --key '{key}'"));
    let found = trial.object("GET", encoded, &[], b"")?;
    match (pushed, found.status) {
        (Ok(_), 200) if found.body == b"text\n" && trial.keys()?.iter().any(|found| found == key) => Ok(Outcome::ok()),
        (Err(error), _) => Err(error),
        _ => Err(format!("the object is not there under its key: {}", found.error())),
    }
}

pub(super) fn prefix(trial: &Trial<'_>) -> Result<Outcome, String> {
    let below = |script: &str| format!("C=\"${{C/\\?//some/prefix?}}\"; {script}");
    trial.run(&below("s3-push --no-nix \"$C\" < closure.tar"))?;
    if let Some(key) = trial.keys()?.iter().find(|key| !key.starts_with("some/prefix/")) {
        return Err(format!("{key} is outside the prefix"));
    }
    let missing = trial.run(&below("s3-push --missing \"$C\" < paths"))?;
    if !missing.is_empty() {
        return Err(format!("missing below the prefix: {missing}"));
    }
    trial.pull(&below("s3-pull -r --root $OUT \"$C\" \"$TOP\""))?;
    Ok(Outcome::ok())
}

/// The narinfos describe NARs that are not there: only the listing matters.
pub(super) fn listing(trial: &Trial<'_>) -> Result<Outcome, String> {
    let mut random = Random::new(LISTED as u64);
    for _ in 0..LISTED {
        let path = random_store_path(&mut random, "listed");
        let narinfo = format!(
            "StorePath: {path}\nURL: nar/{hash}.nar\nCompression: none\nFileHash: sha256:{hash}\nFileSize: 120\n\
             NarHash: sha256:{hash}\nNarSize: 120\nReferences: \n",
            hash = "0".repeat(52)
        );
        let key = format!("{}.narinfo", &path["/nix/store/".len()..][..32]);
        trial.object("PUT", &key, &[], narinfo.as_bytes())?.success()?;
    }
    let listed = trial.run("s3-pull --list --all --no-verify-signatures \"$C\"")?.lines().count();
    if listed != LISTED {
        return Err(format!("{listed} of {LISTED} paths are listed"));
    }
    Ok(Outcome::ok())
}
