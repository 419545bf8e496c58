//! The pins of a bucket for `s3-pull check`: each must be a path list, and the cache must have its paths. Every command that
//! reads pins fails otherwise.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::store_path::StorePath;
use narinfo_gen::archive::narinfo_key;
use s3_push::remote::liveness::{ListedNarinfo, require_readable};
use s3_push::remote::pins::{PinName, list_pin_objects, read_pin};
use s3_push::remote::progress::count_of;
use s3_push::remote::s3::{Bucket, ListedObject};

use super::CheckOptions;
use super::findings::{Finding, Findings, Reason};

/// Adds the pins that are malformed, and the paths that they name and the cache does not have.
///
/// # Errors
/// Fails if a pin cannot be read, or if a lookup fails.
pub async fn check_pins(
    bucket: &Bucket,
    options: &CheckOptions,
    listed: &[ListedNarinfo],
    findings: &mut Findings,
) -> Result {
    let objects = list_pin_objects(bucket).await?;
    let checks = stream::iter(objects.iter().map(|object| check_pin(bucket, options, listed, object)));
    let checked: Vec<CheckedPin> = checks.buffered(bucket.max_in_flight().into()).try_collect().await?;
    let mut missing: BTreeMap<StorePath, Vec<String>> = BTreeMap::new();
    for pin in checked {
        match pin {
            CheckedPin::Malformed(finding) => findings.add(finding),
            CheckedPin::Read { name, missing: paths } => {
                for path in paths {
                    missing.entry(path).or_default().push(name.as_str().to_owned());
                }
            }
        }
    }
    findings.extend(missing.iter().map(|(path, names)| missing_pinned(path, names, options)));
    require_readable(bucket)
}

enum CheckedPin {
    Malformed(Finding),
    Read {
        name: PinName,
        /// The paths that the cache does not have.
        missing: Vec<StorePath>,
    },
}

fn missing_pinned(path: &StorePath, names: &[String], options: &CheckOptions) -> Finding {
    let full_path = options.store_dir.join(path);
    let pins = match names {
        [name] => name.clone(),
        [name, rest @ ..] => format!("{name} and {}", count_of(rest.len(), "other pin")),
        [] => String::new(),
    };
    let message = format!("{full_path}: not in the cache; pinned by {pins}");
    let key = narinfo_key(path.hash_part());
    Finding { path: Some(full_path), key, reason: Reason::MissingPinned, message, size: 0 }
}

async fn check_pin(
    bucket: &Bucket,
    options: &CheckOptions,
    listed: &[ListedNarinfo],
    object: &ListedObject,
) -> Result<CheckedPin> {
    let read = async {
        let name = PinName::of_object(bucket, object).map_err(|error| Error::refused(error.message()))?;
        let paths = read_pin(bucket, &name, &options.store_dir).await?;
        Ok::<_, Error>((name, paths.unwrap_or_default()))
    };
    let (name, paths) = match read.await {
        Ok(found) => found,
        Err(error) if error.is_refusal() => {
            let (key, message) = (object.key.clone(), error.message().to_owned());
            let finding = Finding { path: None, key, reason: Reason::MalformedPin, message, size: 0 };
            return Ok(CheckedPin::Malformed(finding));
        }
        Err(error) => return Err(error),
    };
    let lookups =
        stream::iter(paths).map(async |path| Ok::<_, Error>((is_present(bucket, listed, &path).await?, path)));
    let found: Vec<(bool, StorePath)> = lookups.buffered(bucket.max_in_flight().into()).try_collect().await?;
    let missing: BTreeSet<StorePath> =
        found.into_iter().filter(|(is_present, _)| !is_present).map(|(_, path)| path).collect();
    // It may have been replaced meanwhile, before its paths were deleted.
    let named = if missing.is_empty() { None } else { read_pin(bucket, &name, &options.store_dir).await? };
    let named: HashSet<StorePath> = named.into_iter().flatten().collect();
    let missing = missing.into_iter().filter(|path| named.contains(path)).collect();
    Ok(CheckedPin::Read { name, missing })
}

/// Returns whether the cache has a path. It may have been published since the narinfos were listed.
async fn is_present(bucket: &Bucket, listed: &[ListedNarinfo], path: &StorePath) -> Result<bool> {
    let is_listed = listed.binary_search_by_key(&path.hash_part(), |narinfo| narinfo.hash).is_ok();
    Ok(is_listed || bucket.size(&narinfo_key(path.hash_part())).await?.is_some())
}
