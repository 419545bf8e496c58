//! `s3-pull stats`: what is in a bucket, according to its narinfos and pins.

mod chart;
mod closures;
mod html;
mod months;
mod report;

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::time::SystemTime;

use cache_sign::keys::key_name;
use nar_pack::error::{Error, Result};
use nar_pack::json_lines::write_object;
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, StorePath};
use narinfo_gen::compression::Compression;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::cli::only_url;
use s3_push::remote::etag::{Md5Tag, md5_tag_of};
use s3_push::remote::known_texts::KnownTexts;
use s3_push::remote::liveness::{Graph, ListedNarinfo, TextSpool, list_narinfos, read_narinfos};
use s3_push::remote::pins::{list_pins, read_pin};
use s3_push::remote::s3::Bucket;
use tokio::runtime::Runtime;

use super::cli::StatsArgs;
use super::connect;
use closures::{Sizes, find_largest, find_pinned, largest_paths};
use html::to_html;
use report::Stats;

/// Maximum number of keys with a count of their own; more are counted under [`OTHERS`].
const MAX_SIGNERS: usize = 1000;
/// Maximum length of the name of a key, in bytes; longer names are counted under [`OTHERS`].
const MAX_SIGNER_NAME: usize = 256;
/// The name of all keys beyond the maximum.
const OTHERS: &str = "(others)";

pub fn run(runtime: &Runtime, args: &StatsArgs) -> Result {
    let store_dir = StoreDir::new(&args.bucket.store_dir)?;
    let url = only_url(&args.targets)?;
    let known = args.have.as_deref().map(KnownTexts::open).transpose()?;
    let (stats, cache) = runtime.block_on(async {
        let bucket = connect(&url, &args.bucket).await?;
        let stats = collect(&bucket, &store_dir, known.as_ref()).await?;
        Ok::<_, Error>((stats, bucket.display_url("")))
    })?;
    let html = args.html.then(|| to_html(&stats, &cache, SystemTime::now())).transpose()?;
    let mut out = stdio::stdout(None)?;
    match html {
        Some(page) => out.write_all(page.as_bytes())?,
        None if args.json => write_object(&mut out, stats.to_json())?,
        None => stats.write_tables(&mut out)?,
    }
    out.finish()
}

async fn collect(bucket: &Bucket, store_dir: &StoreDir, known: Option<&KnownTexts>) -> Result<Stats> {
    let listed = list_narinfos(bucket).await?;
    let mut narinfos = Narinfos::new(&listed)?;
    read_narinfos(bucket, store_dir, &listed, known, |index, found| match found {
        Some((narinfo, _)) => narinfos.add(index, &listed[index], narinfo),
        None => Ok(()),
    })
    .await?;
    let pins = read_pins(bucket, store_dir, &narinfos.graph).await?;
    let pinned: Vec<usize> = pins.iter().flat_map(|(_, paths)| paths.iter().copied()).collect();
    let (names, paths): (Vec<String>, Vec<Vec<usize>>) = pins.into_iter().unzip();
    let closures = find_largest(&narinfos.graph, &narinfos.sizes, &pinned);
    let kept = find_pinned(&narinfos.graph, &narinfos.sizes, &paths);
    let paths_of = |largest: Vec<(usize, Sizes)>| -> Result<Vec<(String, Sizes)>> {
        let rows = largest.into_iter().map(|(index, sizes)| {
            let path = StorePath::from_base_name(&narinfos.names.read(index)?)?;
            Ok((store_dir.join(&path), sizes))
        });
        rows.collect()
    };
    let largest_closures = paths_of(closures.largest)?;
    let largest_paths = paths_of(largest_paths(&narinfos.sizes))?;
    Ok(Stats {
        total: narinfos.total,
        by_month: narinfos.by_month.into_iter().collect(),
        by_compression: narinfos.by_compression.into_iter().collect(),
        by_signer: narinfos.by_signer.into_iter().collect(),
        largest_paths,
        largest_closures,
        closures_examined: closures.examined,
        closures_total: closures.total,
        pins: names.into_iter().zip(kept.alone).collect(),
        unpinned: kept.unpinned,
    })
}

/// Returns the pins, each with those of its paths that the cache has.
async fn read_pins(bucket: &Bucket, store_dir: &StoreDir, graph: &Graph) -> Result<Vec<(String, Vec<usize>)>> {
    let mut pins = Vec::new();
    for pin in list_pins(bucket).await? {
        let paths = read_pin(bucket, &pin.name, store_dir).await;
        // Here malformed data is not refused input, but a reason to give up.
        let paths = paths.map_err(|error| Error::failed(error.message()))?.unwrap_or_default();
        let indices = paths.iter().filter_map(|path| graph.find(path.hash_part())).collect();
        pins.push((pin.name.as_str().to_owned(), indices));
    }
    Ok(pins)
}

/// What is known of the narinfos that were read.
struct Narinfos {
    graph: Graph,
    /// By path; a path that is gone has none.
    sizes: Vec<Sizes>,
    /// The base names of the paths.
    names: TextSpool,
    /// The NARs, by the MD5 hashes of their keys.
    nars: HashSet<Md5Tag>,
    total: Sizes,
    by_month: BTreeMap<String, Sizes>,
    by_compression: BTreeMap<String, Sizes>,
    by_signer: BTreeMap<Option<String>, Sizes>,
}

impl Narinfos {
    fn new(listed: &[ListedNarinfo]) -> Result<Self> {
        Ok(Self {
            graph: Graph::new(listed.iter().map(|narinfo| narinfo.hash)),
            sizes: vec![Sizes::default(); listed.len()],
            names: TextSpool::new()?,
            nars: HashSet::new(),
            total: Sizes::default(),
            by_month: BTreeMap::new(),
            by_compression: BTreeMap::new(),
            by_signer: BTreeMap::new(),
        })
    }

    fn add(&mut self, index: usize, listed: &ListedNarinfo, narinfo: &NarInfo) -> Result {
        let file_size = narinfo.file_size.unwrap_or_default();
        let sizes = Sizes { paths: 1, nar_size: narinfo.nar_size, file_size };
        self.graph.set_references(index, narinfo.references.iter().map(StorePath::hash_part));
        self.sizes[index] = sizes;
        let is_first = self.nars.insert(md5_tag_of(narinfo.url.as_bytes()));
        self.total.add(Sizes { file_size: if is_first { file_size } else { 0 }, ..sizes });
        self.by_month.entry(month(listed.last_modified)).or_default().add(sizes);
        let compression = Compression::from_name(&narinfo.compression).map_or(OTHERS, Compression::name);
        self.by_compression.entry(compression.to_owned()).or_default().add(sizes);
        for signer in self.signers(narinfo) {
            self.by_signer.entry(signer).or_default().add(sizes);
        }
        self.names.add(index, narinfo.path.base_name())
    }

    /// Returns the names of the keys that have signed, each once; none for a path without signature.
    fn signers(&self, narinfo: &NarInfo) -> Vec<Option<String>> {
        let is_full = self.by_signer.len() >= MAX_SIGNERS;
        let mut names: Vec<Option<String>> = narinfo
            .signatures
            .iter()
            .map(|signature| Some(key_name(signature).to_owned()))
            .map(|name| {
                let is_long = name.as_ref().is_some_and(|name| name.len() > MAX_SIGNER_NAME);
                if is_long || is_full && !self.by_signer.contains_key(&name) { Some(OTHERS.to_owned()) } else { name }
            })
            .collect();
        if names.is_empty() {
            names.push(None);
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Returns the month of a time in UTC, such as `2026-11`.
fn month(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time.max(SystemTime::UNIX_EPOCH)).to_string();
    text.chars().take("2026-11".len()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_month_begins_at_midnight_utc() {
        let at = |seconds: u64| month(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(
            (at(0), at(1_796_083_199), at(1_796_083_200)),
            ("1970-01".into(), "2026-11".into(), "2026-12".into())
        );
        assert_eq!(month(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01");
    }
}
