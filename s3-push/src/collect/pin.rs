//! Writes and removes pins.

use std::collections::BTreeSet;
use std::io::Write as _;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::json_lines::{print_object, write_object};
use nar_pack::process;
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};
use narinfo_gen::archive::narinfo_key;
use serde_json::json;
use tokio::runtime::Runtime;

use super::cli::{PinArgs, UnpinArgs};
use crate::TOOL;
use crate::publish::collection::CollectorWait;
use crate::remote::cli::split_url;
use crate::remote::pins::{self, PinName, list_pin_objects, list_pins};
use crate::remote::progress::{Progress, count_of};
use crate::remote::s3::{Access, Bucket};

/// How often a pin is written: a collector may remove an expired one of that name meanwhile.
const MAX_ATTEMPTS: u32 = 3;

/// Pins the paths on standard input.
pub fn pin(runtime: &Runtime, args: &PinArgs) -> Result {
    let store_dir = StoreDir::new(&args.bucket.store_dir)?;
    let (url, rest) = split_url(&args.targets)?;
    let [name] = rest else { return Err(Error::usage("expected a bucket and the name of the pin")) };
    let name = PinName::parse(name)?;
    let mut paths = read_path_list(stdio::stdin("a path list")?, &store_dir)?;
    paths.sort_unstable();
    paths.dedup();
    if paths.is_empty() {
        let error = Error::refused("the path list is empty: it would pin nothing");
        return Err(error.with_hint("use 's3-push unpin' to remove a pin"));
    }
    runtime.block_on(async {
        let bucket = args.bucket.connect(&url, Access::Signed, TOOL).await?;
        let collector_wait = CollectorWait::new(args.collector_timeout);
        refuse_conflict(&bucket, &name).await?;
        require_paths(&bucket, &store_dir, &paths).await?;
        write_pin(&bucket, &store_dir, &name, &paths, &collector_wait).await?;
        if args.json {
            print_object(json!({ "name": name.as_str(), "status": "pinned", "paths": paths.len() }))?;
        }
        if !args.bucket.quiet {
            let count = count_of(paths.len(), "path");
            process::print_message(TOOL, format!("{}: {count}", bucket.display_url(&name.key())));
        }
        Ok(())
    })
}

/// Writes a pin, again if a collector has removed it meanwhile, and returns when no collector can delete its paths any more.
async fn write_pin(
    bucket: &Bucket,
    store_dir: &StoreDir,
    name: &PinName,
    paths: &[StorePath],
    collector_wait: &CollectorWait,
) -> Result {
    let text: Bytes = paths.iter().map(|path| store_dir.join(path) + "\n").collect::<String>().into();
    let url = bucket.display_url(&name.key());
    for _ in 0..MAX_ATTEMPTS {
        collector_wait.wait(bucket).await?;
        bucket.put(&name.key(), "text/plain; charset=UTF-8", text.clone()).await?;
        // A collector reads the pins after it has set its flag. One that has set it since may have read them before this
        // one was written, and deletes the paths and an expired pin of that name until it ends. One that sets it later
        // keeps them.
        collector_wait.wait(bucket).await?;
        require_paths(bucket, store_dir, paths).await.map_err(|error| {
            let what = if error.is_refusal() { "names a missing path" } else { "its paths were not looked up" };
            error.context(format!("{url} is written, but {what}"))
        })?;
        // Listed, since an uploader may not be allowed to read pins.
        if list_pins(bucket).await?.iter().any(|pin| pin.name == *name) {
            return Ok(());
        }
    }
    Err(Error::failed(format!("{url}: removed by another process")))
}

/// Refuses a name that would hide an existing pin, or be hidden by one, where a service stores objects as files.
async fn refuse_conflict(bucket: &Bucket, name: &PinName) -> Result {
    let pins = list_pins(bucket).await?;
    let Some(other) = pins.iter().map(|pin| &pin.name).find(|other| name.conflicts_with(other)) else { return Ok(()) };
    let (name, other) = (name.as_str(), other.as_str());
    let error =
        Error::refused(format!("the pin {name} and the existing pin {other} would hide each other on some services"));
    Err(error.with_hint(format!("use a name beside it, such as {name}-latest, or remove it with 's3-push unpin'")))
}

/// Refuses paths that the cache does not have.
async fn require_paths(bucket: &Bucket, store_dir: &StoreDir, paths: &[StorePath]) -> Result {
    let progress = Progress::of_objects("paths", paths.len());
    let lookups = stream::iter(paths.iter().map(async |path| {
        let is_present = bucket.size(&narinfo_key(path.hash_part())).await?.is_some();
        progress.increment();
        Ok::<_, Error>((!is_present).then_some(path))
    }));
    let missing: Vec<_> = lookups.buffered(bucket.max_in_flight().into()).try_collect().await?;
    let missing: Vec<&StorePath> = missing.into_iter().flatten().collect();
    match missing.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => {
            let others = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            let error = format!("{}{others} is not in the cache {}", store_dir.join(first), bucket.display_url(""));
            Err(Error::refused(error).with_hint("publish the paths first, then pin them"))
        }
    }
}

/// Removes the pins that match.
pub fn unpin(runtime: &Runtime, args: &UnpinArgs) -> Result {
    let (url, patterns) = split_url(&args.targets)?;
    if patterns.is_empty() {
        return Err(Error::usage("expected the name of a pin, or a pattern such as 'pr-*'"));
    }
    let (bucket_url, removed, unmatched) = runtime.block_on(async {
        let bucket = args.bucket.connect(&url, Access::Signed, TOOL).await?.with_dry_run(args.dry_run);
        // Another tool may have written one whose name is invalid.
        let keys = list_pin_objects(&bucket).await?.into_iter().map(|object| object.key);
        let names = keys.filter_map(|key| Some(key.strip_prefix(pins::PREFIX)?.to_owned()));
        let names: BTreeSet<String> = names.collect();
        // A name that exists is no pattern: another tool may have written one with an asterisk.
        let is_match = |pattern: &String, name: &String| {
            if names.contains(pattern) { pattern == name } else { matches_pattern(pattern, name) }
        };
        let is_selected = |name: &&String| patterns.iter().any(|pattern| is_match(pattern, name));
        let names: Vec<String> = names.iter().filter(is_selected).cloned().collect();
        let is_unmatched = |pattern: &&String| !names.iter().any(|name| is_match(pattern, name));
        let unmatched: Vec<String> = patterns.iter().filter(is_unmatched).cloned().collect();
        let keys: Vec<String> = names.iter().map(|name| format!("{}{name}", pins::PREFIX)).collect();
        bucket.delete(&keys).await?;
        Ok::<_, Error>((bucket.display_url(""), names, unmatched))
    })?;
    let mut out = stdio::stdout(None)?;
    let status = if args.dry_run { "would-remove" } else { "removed" };
    for name in removed {
        if args.json {
            write_object(&mut out, json!({ "name": name, "status": status }))?;
        } else {
            writeln!(out, "{name}")?;
        }
    }
    out.finish()?;
    if unmatched.is_empty() {
        return Ok(());
    }
    let error = Error::refused(format!("{bucket_url}: no pin matches {}", unmatched.join(" ")));
    Err(error.with_hint("'s3-pull pins' lists the pins"))
}

/// Returns whether a name matches a pattern, in which `*` stands for any characters.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asterisk_stands_for_any_characters() {
        for (pattern, name) in
            [("pr-*", "pr-1"), ("pr-*", "pr-"), ("*", "a/b"), ("a*b*c", "a1b2b3c"), ("*/x", "main/x"), ("a", "a")]
        {
            assert!(matches_pattern(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("pr-*", "xpr-1"), ("a*a", "a"), ("a", "ab"), ("a*b*c", "acb"), ("*x", "xy")] {
            assert!(!matches_pattern(pattern, name), "{pattern} {name}");
        }
    }
}
