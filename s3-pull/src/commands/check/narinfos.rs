//! The narinfos of a bucket for `s3-pull check`: each must be valid, describe the path of its key and be signed by the
//! trusted keys; the paths that it references must be there. What a listing lacks is looked up before it counts as
//! missing, because objects are written while it is listed.

use std::collections::HashMap;

use cache_sign::trust::TrustedKeys;
use futures_util::{StreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::archive::narinfo_key;
use narinfo_gen::compression::Compression;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::liveness::{ListedNarinfo, parse_listed, read_narinfo_texts, require_readable};
use s3_push::remote::s3::Bucket;

use super::CheckOptions;
use super::findings::{Finding, Findings, Reason};
use super::nars::NarNeeds;
use crate::sources::{RequestedPath, Sources};

/// The references that are not in the listing.
pub type MissingReferences = HashMap<HashPart, MissingReference>;

/// A path that other paths reference.
pub struct MissingReference {
    path: StorePath,
    /// One of the paths that reference it, and how many there are.
    referrer: StorePath,
    count: u64,
}

/// Reads and checks all narinfos. Returns the NARs that they need, and the references that are not in the listing.
///
/// # Errors
/// Fails if a narinfo cannot be read.
pub async fn check_narinfos(
    bucket: &Bucket,
    options: &CheckOptions,
    listed: &[ListedNarinfo],
    findings: &mut Findings,
) -> Result<(NarNeeds, MissingReferences)> {
    let (mut needs, mut missing) = (NarNeeds::default(), MissingReferences::new());
    read_narinfo_texts(bucket, listed, options.known.as_ref(), |index, text| {
        let parsed = match text {
            Ok(None) => return Ok(()),
            Ok(Some(text)) => parse(bucket, options, &listed[index], text),
            Err(error) => Err(malformed(&listed[index], None, &error)),
        };
        let narinfo = match parsed {
            Ok(narinfo) => narinfo,
            Err(finding) => {
                findings.add(finding);
                return Ok(());
            }
        };
        findings.extend(options.trusted.as_ref().and_then(|trusted| untrusted(trusted, &narinfo)));
        needs.add(index, &narinfo);
        if !options.allow_missing_references {
            add_missing(&mut missing, &narinfo, listed);
        }
        Ok(())
    })
    .await?;
    Ok((needs, missing))
}

/// Parses a narinfo, or returns what is wrong with it.
pub fn parse(bucket: &Bucket, options: &CheckOptions, listed: &ListedNarinfo, text: &str) -> Result<NarInfo, Finding> {
    let checked = parse_listed(bucket, &options.store_dir, listed, text).and_then(|narinfo| {
        let url = || bucket.display_url(&listed.key());
        Compression::from_name(&narinfo.compression).map_err(|error| error.context(url()))?;
        Ok(narinfo)
    });
    checked.map_err(|error| malformed(listed, claimed_path(text, listed.hash, &options.store_dir), &error))
}

/// Returns the path that a malformed narinfo names, if it is that of its key.
fn claimed_path(text: &str, hash: HashPart, store_dir: &StoreDir) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("StorePath: "))?;
    let path = store_dir.parse(path).ok()?;
    (path.hash_part() == hash).then(|| store_dir.join(&path))
}

fn malformed(listed: &ListedNarinfo, path: Option<String>, error: &Error) -> Finding {
    let error = error.message();
    let message = path.as_ref().map_or_else(|| error.to_owned(), |path| format!("{path}: {error}"));
    Finding { path, key: listed.key(), reason: Reason::MalformedNarinfo, message, size: 0 }
}

fn untrusted(trusted: &TrustedKeys, narinfo: &NarInfo) -> Option<Finding> {
    let message = trusted.require(narinfo).err()?.message().to_owned();
    let path = Some(narinfo.full_path());
    Some(Finding { path, key: narinfo.key(), reason: Reason::Untrusted, message, size: 0 })
}

fn add_missing(missing: &mut MissingReferences, narinfo: &NarInfo, listed: &[ListedNarinfo]) {
    for path in narinfo.references.iter().filter(|path| **path != narinfo.path) {
        let hash = path.hash_part();
        if listed.binary_search_by_key(&hash, |narinfo| narinfo.hash).is_err() {
            let new = || MissingReference { path: path.clone(), referrer: narinfo.path.clone(), count: 0 };
            missing.entry(hash).or_insert_with(new).count += 1;
        }
    }
}

/// Looks up the references that are not in the listing, in the bucket and in the upstream caches.
///
/// # Errors
/// Fails if a lookup does.
pub async fn check_references(
    bucket: &Bucket,
    options: &CheckOptions,
    upstreams: Option<&Sources>,
    missing: MissingReferences,
    findings: &mut Findings,
) -> Result {
    let lookups = missing.into_values().map(|reference| check_reference(bucket, options, upstreams, reference));
    let mut lookups = stream::iter(lookups).buffer_unordered(bucket.max_in_flight().into());
    while let Some(finding) = lookups.next().await {
        findings.extend(finding?);
    }
    require_readable(bucket)
}

async fn check_reference(
    bucket: &Bucket,
    options: &CheckOptions,
    upstreams: Option<&Sources>,
    reference: MissingReference,
) -> Result<Option<Finding>> {
    let MissingReference { path, referrer, count } = reference;
    let key = narinfo_key(path.hash_part());
    if bucket.size(&key).await?.is_some() || has_upstream(upstreams, &path).await? {
        return Ok(None);
    }
    // A collector deletes the paths that reference a path before it.
    if count == 1 && bucket.size(&narinfo_key(referrer.hash_part())).await?.is_none() {
        return Ok(None);
    }
    let (path, referrer) = (options.store_dir.join(&path), options.store_dir.join(&referrer));
    let others = if count > 1 { format!("{count} paths reference it, among them") } else { "referenced by".to_owned() };
    let message = format!("{path}: not in the cache; {others} {referrer}");
    Ok(Some(Finding { path: Some(path), key, reason: Reason::MissingNarinfo, message, size: 0 }))
}

/// Returns whether an upstream cache has a path.
async fn has_upstream(upstreams: Option<&Sources>, path: &StorePath) -> Result<bool> {
    let Some(upstreams) = upstreams else { return Ok(false) };
    match upstreams.find(&RequestedPath::Path(path.clone())).await {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.is_refusal() => Ok(false),
        Err(error) => Err(error.context("--upstream")),
    }
}
