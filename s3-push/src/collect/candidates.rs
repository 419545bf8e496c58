//! The paths that are to be deleted: narinfo text, which proves what is deleted.

use std::collections::HashSet;

use nar_pack::error::{Error, Result};
use nar_pack::stdio;
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::narinfo::{self, NarInfo, read_verbatim_text};

use crate::remote::etag::{Md5Tag, md5_tag_of};
use crate::remote::liveness::{DeadPaths, ListedNarinfo, TextSpool};
use crate::remote::s3::Bucket;

/// One path.
pub struct DeletionCandidate {
    /// The path.
    pub path: StorePath,
    /// Its references, without itself.
    pub references: Vec<HashPart>,
    /// The MD5 hash of its narinfo.
    md5: Md5Tag,
    /// The index of the text of its narinfo.
    text: usize,
}

impl DeletionCandidate {
    fn new(narinfo: NarInfo, text: &str, index: usize) -> Self {
        let hash = narinfo.path.hash_part();
        let references = narinfo.references.iter().map(StorePath::hash_part).filter(|other| *other != hash);
        Self { references: references.collect(), path: narinfo.path, md5: md5_tag_of(text.as_bytes()), text: index }
    }

    /// Returns whether the narinfo in the bucket has exactly this text. An entity tag that is not its MD5 hash proves
    /// nothing, since with encryption it may be anything, so the text is read.
    ///
    /// # Errors
    /// Fails if it cannot be read.
    pub async fn is_unchanged(&self, bucket: &Bucket, listed: &ListedNarinfo) -> Result<bool> {
        if listed.md5 == Some(self.md5) {
            return Ok(true);
        }
        let found = bucket.get_text(&listed.key(), narinfo::MAX_SIZE).await?;
        Ok(found.is_some_and(|found| md5_tag_of(found.text.as_bytes()) == self.md5))
    }
}

/// Paths in the order of the stream, and their narinfos in a temporary file.
pub struct Candidates {
    /// The paths.
    pub paths: Vec<DeletionCandidate>,
    texts: TextSpool,
}

impl Candidates {
    /// Reads narinfo text from standard input. Empty input means no paths.
    ///
    /// # Errors
    /// Refuses malformed or truncated text, and a path that occurs twice.
    pub fn read(store_dir: &StoreDir) -> Result<Self> {
        let mut input = stdio::stdin("narinfo text")?;
        let mut candidates = Self { paths: Vec::new(), texts: TextSpool::new()? };
        let mut seen = HashSet::new();
        if std::io::BufRead::fill_buf(&mut input)?.is_empty() {
            return Ok(candidates);
        }
        read_verbatim_text(input, store_dir, |narinfo, text, _| {
            if !seen.insert(narinfo.path.hash_part()) {
                return Err(Error::refused(format!("{} occurs twice", narinfo.full_path())));
            }
            let index = candidates.paths.len();
            candidates.texts.add(index, text)?;
            candidates.paths.push(DeletionCandidate::new(narinfo, text, index));
            Ok(())
        })?;
        Ok(candidates)
    }

    /// Takes the dead paths of a cache, with their texts.
    ///
    /// # Errors
    /// Fails if a temporary file does.
    pub fn of_dead(dead: DeadPaths, store_dir: &StoreDir) -> Result<Self> {
        let (texts, order) = dead.into_texts();
        let read = |index| {
            let text = texts.read(index)?;
            Ok(DeletionCandidate::new(NarInfo::parse(&text, store_dir)?, &text, index))
        };
        let paths = order.into_iter().map(read).collect::<Result<_>>()?;
        Ok(Self { paths, texts })
    }

    /// Returns the text of a narinfo.
    ///
    /// # Errors
    /// Fails if the temporary file does.
    pub fn text(&self, index: usize) -> Result<String> {
        self.texts.read(self.paths[index].text)
    }
}
