//! The NARs of a bucket for `s3-pull check`: each that a narinfo names must be there with its FileSize, according to the
//! listing. Those that are read must match their narinfos. A NAR that looks wrong is looked up again together with its
//! narinfo before it is reported, because objects are written and deleted while they are listed.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use futures_util::{StreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::nar::Skip;
use narinfo_gen::archive::NAR_PREFIX;
use narinfo_gen::narinfo::{self, NarInfo};
use s3_push::remote::Remote;
use s3_push::remote::etag::{Md5Tag, md5_tag_of};
use s3_push::remote::listing::{ListItem, for_each_item};
use s3_push::remote::liveness::{ListedNarinfo, require_readable};
use s3_push::remote::progress::Progress;
use s3_push::remote::retry::Backoff;
use s3_push::remote::s3::{Bucket, ListDepth};

use super::CheckOptions;
use super::findings::{Finding, Findings, Reason};
use super::narinfos::parse;
use crate::fetch;

/// The NARs that narinfos name. 32 bytes of memory each.
#[derive(Default)]
pub struct NarNeeds(Vec<NarNeed>);

#[derive(Clone, Copy)]
struct NarNeed {
    /// The MD5 hash of the key, which takes less memory than the key.
    key: Md5Tag,
    /// `FileSize`, if the narinfo has one.
    size: Option<NonZeroU64>,
    /// The index of the narinfo in the listing.
    index: u32,
}

impl NarNeeds {
    /// Adds the NAR of a narinfo.
    pub fn add(&mut self, index: usize, narinfo: &NarInfo) {
        let (key, size) = (md5_tag_of(narinfo.url.as_bytes()), narinfo.file_size.and_then(NonZeroU64::new));
        self.0.extend(u32::try_from(index).ok().map(|index| NarNeed { key, size, index }));
    }

    fn contains(&self, key: Md5Tag) -> bool {
        self.0.binary_search_by_key(&key, |need| need.key).is_ok()
    }
}

/// Compares the NARs with the listing. Returns those to read: the ones of the share, as indices of narinfos.
///
/// # Errors
/// Fails if anything cannot be listed or read.
pub async fn check_sizes(
    bucket: &Bucket,
    options: &CheckOptions,
    listed: &[ListedNarinfo],
    mut needs: NarNeeds,
    findings: &mut Findings,
) -> Result<Vec<u32>> {
    needs.0.sort_unstable_by_key(|need| (need.key, need.index));
    let found = list_nars(bucket, &needs, findings).await?;
    findings.totals.nars.0 = found.len();
    findings.totals.nars.1 = found.iter().map(|(_, size)| size).sum();
    let is_intact = |need: &NarNeed| match found.binary_search_by_key(&need.key, |(key, _)| *key) {
        Ok(at) => need.size.is_none_or(|size| found[at].1 == size.get()),
        Err(_) => false,
    };
    let (intact, suspects): (Vec<NarNeed>, Vec<NarNeed>) = needs.0.into_iter().partition(is_intact);
    let share = options.read.map(|share| share.on_day(SystemTime::now(), findings.totals.nars.1));
    let to_read = intact.iter().filter(|need| share.is_some_and(|share| share.contains(need.key)));
    let to_read = to_read.map(|need| need.index).collect();
    drop(intact);
    let lookups = suspects.into_iter().map(|need| check_again(bucket, options, &listed[need.index as usize]));
    let mut lookups = stream::iter(lookups).buffer_unordered(bucket.max_in_flight().into());
    while let Some(finding) = lookups.next().await {
        findings.extend(finding?);
    }
    require_readable(bucket)?;
    Ok(to_read)
}

/// Lists the NARs, and adds those that no narinfo names to the findings. Returns the others, sorted.
async fn list_nars(bucket: &Bucket, needs: &NarNeeds, findings: &mut Findings) -> Result<Vec<(Md5Tag, u64)>> {
    let (mut found, mut unneeded) = (Vec::new(), Vec::new());
    for_each_item(bucket, (NAR_PREFIX, ListDepth::All), |item| {
        if let ListItem::Object(object) = item {
            let (key, size) = (md5_tag_of(object.key.as_bytes()), object.size.unwrap_or_default());
            if needs.contains(key) {
                found.push((key, size));
            } else {
                unneeded.push((object.key, size));
            }
        }
    })
    .await?;
    found.sort_unstable();
    found.dedup_by_key(|(key, _)| *key);
    unneeded.sort_unstable();
    unneeded.dedup_by(|a, b| a.0 == b.0);
    findings.extend(unneeded.into_iter().map(|(key, size)| {
        let message = format!("{}: a NAR that no narinfo names", bucket.display_url(&key));
        Finding { path: None, key, reason: Reason::UnneededNar, message, size }
    }));
    Ok(found)
}

/// Reads the narinfo again; none if it is gone.
async fn read_again(
    bucket: &Bucket,
    options: &CheckOptions,
    listed: &ListedNarinfo,
) -> Result<Option<Result<NarInfo, Finding>>> {
    let text = bucket.get_text(&listed.key(), narinfo::MAX_SIZE).await?;
    Ok(text.map(|object| parse(bucket, options, listed, &object.text)))
}

/// Looks up a NAR that the listing does not have, or has with another size.
async fn check_again(bucket: &Bucket, options: &CheckOptions, listed: &ListedNarinfo) -> Result<Option<Finding>> {
    let narinfo = match read_again(bucket, options, listed).await? {
        None => return Ok(None),
        Some(Err(finding)) => return Ok(Some(finding)),
        Some(Ok(narinfo)) => narinfo,
    };
    let size = bucket.size(&narinfo.url).await?;
    let url = bucket.display_url(&narinfo.url);
    Ok(match (size, narinfo.file_size) {
        (None, _) => Some(finding(&narinfo, Reason::MissingNar, &format!("its NAR {url} is missing"))),
        (Some(found), Some(expected)) if found != expected => {
            let message = format!("its NAR {url} has {found} bytes, expected {expected} (FileSize)");
            Some(finding(&narinfo, Reason::NarSize, &message))
        }
        _ => None,
    })
}

fn finding(narinfo: &NarInfo, reason: Reason, message: &str) -> Finding {
    let path = narinfo.full_path();
    let message = format!("{path}: {message}");
    Finding { path: Some(path), key: narinfo.url.clone(), reason, message, size: 0 }
}

/// Reads the NARs of narinfos, and verifies them.
///
/// # Errors
/// Fails if one cannot be read.
pub async fn read_nars(
    bucket: Arc<Bucket>,
    options: &CheckOptions,
    listed: &[ListedNarinfo],
    to_read: Vec<u32>,
    findings: &mut Findings,
) -> Result {
    let progress = Progress::of_objects("NARs", to_read.len());
    let remote = Arc::new(Remote::of_bucket(Arc::clone(&bucket)));
    let reads = to_read.into_iter().map(|index| {
        let (bucket, remote, listed) = (&bucket, &remote, &listed[index as usize]);
        async move {
            match read_again(bucket, options, listed).await? {
                None => Ok(None),
                Some(Err(finding)) => Ok(Some(finding)),
                Some(Ok(narinfo)) => read_nar(remote, narinfo).await,
            }
        }
    });
    // One more than processors, because a reader also waits for its input.
    let readers = std::thread::available_parallelism().map_or(1, usize::from) + 1;
    let mut reads = stream::iter(reads).buffer_unordered(readers);
    while let Some(finding) = reads.next().await {
        findings.extend(finding?);
        findings.totals.read_nars.0 += 1;
        progress.increment();
    }
    findings.totals.read_nars.1 = remote.bytes_received();
    require_readable(&bucket)
}

async fn read_nar(remote: &Arc<Remote>, narinfo: NarInfo) -> Result<Option<Finding>> {
    let narinfo = Arc::new(narinfo);
    let mut backoff = Backoff::new(remote.max_attempts());
    loop {
        let Some(body) = remote.get(&narinfo.url, narinfo.file_size).await? else {
            let message = format!("its NAR {} is missing", remote.display_url(&narinfo.url));
            return Ok(Some(finding(&narinfo, Reason::MissingNar, &message)));
        };
        let (broken, expected) = (Arc::clone(&body.broken), Arc::clone(&narinfo));
        let verification = tokio::task::spawn_blocking(move || {
            fetch::verify_nar(body.into_reader(), &expected, &mut Skip, |_| Ok(()))
        });
        let verified = verification.await.map_err(|_| Error::panicked("verification task"))?;
        let Err(error) = verified else { return Ok(None) };
        if broken.load(Ordering::Acquire) {
            // A body without a strong entity tag cannot be resumed, so it is read again.
            if backoff.next_attempt().await {
                continue;
            }
            return Err(Error::failed(error.message()));
        }
        if !error.is_refusal() {
            return Err(error);
        }
        let (path, key, message) = (Some(narinfo.full_path()), narinfo.url.clone(), error.message().to_owned());
        return Ok(Some(Finding { path, key, reason: Reason::DamagedNar, message, size: 0 }));
    }
}
