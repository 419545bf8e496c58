//! Finds the dead paths of a bucket. A path is live if it is a root or if a live path references it. Everything here
//! fails closed: whatever cannot be read, listed or parsed is an error, so that no live path is ever taken for a dead
//! one.

pub mod cli;
mod graph;
mod narinfos;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};
use narinfo_gen::archive::narinfo_key;
use narinfo_gen::narinfo::{self, NarInfo};

use crate::remote::known_texts::KnownTexts;
use crate::remote::liveness::cli::RootArgs;
use crate::remote::pins::{ListedPin, Retention, list_pins, read_pin, read_pins};
use crate::remote::s3::Bucket;
use crate::remote::text_file::{Span, TextFile};

/// The prefix of the objects that a collector writes.
pub const COLLECTOR_PREFIX: &str = "gc/";

pub use graph::Graph;
use graph::GraphError;
pub use narinfos::{
    ListedNarinfo, list_narinfos, parse_listed, read_narinfo_texts, read_narinfos, require_readable, sort_narinfos,
};

/// What makes a path a root, and when nothing does.
#[derive(Debug, Clone)]
pub struct RootOptions {
    /// Paths younger than this are roots.
    pub older_than: Duration,
    /// Which pins are roots.
    pub retention: Retention,
    /// Further roots.
    pub paths: Vec<StorePath>,
    /// Whether the cache may have neither pins nor further roots.
    pub allow_no_roots: bool,
    /// The current time.
    pub now: SystemTime,
    /// Narinfos of an earlier run.
    pub known: Option<Arc<KnownTexts>>,
}

impl RootOptions {
    /// Reads the options, and the list of roots.
    ///
    /// # Errors
    /// Fails if the list cannot be read; refuses a malformed one.
    pub fn from_args(args: &RootArgs, store_dir: &StoreDir) -> Result<Self> {
        let paths = match args.roots.as_deref() {
            None => Vec::new(),
            Some(file) if file == Path::new("-") => {
                read_path_list(stdio::stdin("a path list")?, store_dir).map_err(fail)?
            }
            Some(file) => {
                let name = || file.display().to_string();
                let opened = File::open(file).map_err(|error| Error::failed(error).context(name()))?;
                read_path_list(BufReader::new(opened), store_dir).context(name).map_err(fail)?
            }
        };
        Ok(Self {
            older_than: args.older_than,
            retention: Retention { keep_last: args.keep_last, keep_within: args.keep_within },
            paths,
            allow_no_roots: args.no_roots,
            now: SystemTime::now(),
            known: args.have.as_deref().map(KnownTexts::open).transpose()?.map(Arc::new),
        })
    }
}

/// The dead paths of a bucket, and their narinfos in a temporary file.
pub struct DeadPaths {
    /// Indices of the dead narinfos in `texts`, each after those that reference it.
    order: Vec<usize>,
    texts: TextSpool,
    /// The number of paths in the bucket.
    pub total: usize,
}

impl DeadPaths {
    /// Returns the number of dead paths.
    #[must_use]
    pub fn count(&self) -> usize {
        self.order.len()
    }

    /// Returns the narinfos, and their indices, referrers first.
    #[must_use]
    pub fn into_texts(self) -> (TextSpool, Vec<usize>) {
        (self.texts, self.order)
    }

    /// Writes the narinfos as narinfo text, referrers first.
    ///
    /// # Errors
    /// Fails if the output or the temporary file does.
    pub fn write(self, out: &mut impl Write) -> Result {
        let mut is_first = true;
        self.for_each(|text| {
            if !std::mem::take(&mut is_first) {
                out.write_all(b"\n")?;
            }
            Ok(out.write_all(text.as_bytes())?)
        })
    }

    /// Passes the text of each narinfo to `each`, referrers first.
    ///
    /// # Errors
    /// Fails if `each` or the temporary file does.
    pub fn for_each(self, mut each: impl FnMut(&str) -> Result) -> Result {
        self.order.iter().try_for_each(|index| each(&self.texts.read(*index)?))
    }
}

/// Finds the dead paths: reads all narinfos, then the pins.
///
/// # Errors
/// Fails if anything cannot be read, listed or parsed, if a root is missing, or if there is no root.
pub async fn find_dead(bucket: &Bucket, store_dir: &StoreDir, options: &RootOptions) -> Result<DeadPaths> {
    let listed = list_narinfos(bucket).await?;
    let mut graph = Graph::new(listed.iter().map(|narinfo| narinfo.hash));
    let mut texts = TextSpool::new()?;
    let is_young = |narinfo: &ListedNarinfo| {
        options.now.duration_since(narinfo.last_modified).map_or(true, |age| age < options.older_than)
    };
    read_narinfos(bucket, store_dir, &listed, options.known.as_deref(), |index, found| {
        let Some((narinfo, text)) = found else {
            graph.remove(index);
            return Ok(());
        };
        graph.set_references(index, narinfo.references.iter().map(StorePath::hash_part));
        if is_young(&listed[index]) {
            graph.mark_live(index);
            return Ok(());
        }
        texts.add(index, text)
    })
    .await?;
    // Read after the narinfos: a pin that was added meanwhile counts.
    let pins = counted_pins(bucket, options).await?;
    let mut roots = read_pins(bucket, &pins, store_dir).await.map_err(fail)?;
    roots.extend(options.paths.iter().cloned());
    if roots.is_empty() && !options.allow_no_roots {
        let error = Error::failed(format!("{}: no pins and no roots", bucket.display_url("")));
        return Err(error.with_hint("pin what must stay with 's3-push pin', or pass --roots FILE or --no-roots"));
    }
    let mut missing: Vec<StorePath> = roots.iter().filter(|path| !graph.mark_root(path.hash_part())).cloned().collect();
    // A root that is not in the listing may have been published since. Its references may be.
    let mut seen = HashSet::new();
    while let Some(path) = missing.pop() {
        if !seen.insert(path.hash_part()) {
            continue;
        }
        let narinfo = read_new_root(bucket, store_dir, &path, &pins).await?;
        for reference in narinfo.references.iter().filter(|reference| **reference != path) {
            if !graph.mark_root(reference.hash_part()) && !is_elsewhere(bucket, reference).await? {
                missing.push(reference.clone());
            }
        }
    }
    require_readable(bucket)?;
    let order = find_dead_batches(&mut graph, bucket)?.into_iter().flatten().collect();
    Ok(DeadPaths { order, texts, total: graph.count() })
}

/// Marks everything that the roots of the graph of a bucket keep, and returns the rest like [`Graph::dead_referrers_first`].
///
/// # Errors
/// Fails if the rest has a cycle of references.
pub fn find_dead_batches(graph: &mut Graph, bucket: &Bucket) -> Result<Vec<Vec<usize>>> {
    graph.propagate();
    graph.dead_referrers_first().map_err(|GraphError::Cycle(hash)| {
        Error::failed(format!("{}: cycle of references", bucket.display_url(&narinfo_key(hash))))
    })
}

/// Returns the pins that count.
async fn counted_pins(bucket: &Bucket, options: &RootOptions) -> Result<Vec<ListedPin>> {
    Ok(options.retention.split(list_pins(bucket).await?, options.now).0)
}

/// Reads the narinfo of a root that was not in the listing.
async fn read_new_root(bucket: &Bucket, store_dir: &StoreDir, path: &StorePath, pins: &[ListedPin]) -> Result<NarInfo> {
    let key = narinfo_key(path.hash_part());
    let Some(object) = bucket.get_text(&key, narinfo::MAX_SIZE).await? else {
        let full_path = store_dir.join(path);
        for pin in pins {
            if read_pin(bucket, &pin.name, store_dir).await?.unwrap_or_default().contains(path) {
                let url = bucket.display_url(&pin.name.key());
                return Err(Error::failed(format!("{url}: {full_path} is not in the cache"))
                    .with_hint("publish the path, or remove the pin with 's3-push unpin'"));
            }
        }
        let error = format!("the root {full_path} is not in the cache {}", bucket.display_url(""));
        return Err(Error::failed(error).with_hint("remove it from the list of roots, or publish it"));
    };
    NarInfo::parse(&object.text, store_dir).context(|| bucket.display_url(&key)).map_err(fail)
}

/// Returns whether a reference is not in this cache: another cache has it.
async fn is_elsewhere(bucket: &Bucket, path: &StorePath) -> Result<bool> {
    Ok(bucket.size(&narinfo_key(path.hash_part())).await?.is_none())
}

/// Returns an error with exit status 2: malformed data in the bucket is a failure of the operation, not refused input.
fn fail(error: Error) -> Error {
    if error.is_refusal() { Error::failed(error.message()) } else { error }
}

/// Texts by index, in a temporary file.
pub struct TextSpool {
    file: TextFile,
    /// Where each text is; the default where there is none.
    spans: Vec<Span>,
}

impl TextSpool {
    /// Creates the file.
    ///
    /// # Errors
    /// Fails if it cannot be created.
    pub fn new() -> Result<Self> {
        Ok(Self { file: TextFile::new()?, spans: Vec::new() })
    }

    /// Stores a text.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn add(&mut self, index: usize, text: &str) -> Result {
        if self.spans.len() <= index {
            self.spans.resize(index + 1, Span::default());
        }
        self.spans[index] = self.file.append(text)?;
        Ok(())
    }

    /// Reads a text; an empty one if none is stored.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn read(&self, index: usize) -> Result<String> {
        Ok(self.file.read(self.spans.get(index).copied().unwrap_or_default())?)
    }
}
