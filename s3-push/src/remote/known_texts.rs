//! The narinfos that are known from an earlier run, a file of narinfo text, or from an earlier pass of this run. An object
//! whose entity tag is the MD5 hash of a known text need not be read. Nothing else in the file counts, so it may be old,
//! truncated or of another cache.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use md5::{Digest as _, Md5};
use nar_pack::error::{Context, Error, Result};
use nar_pack::sync::lock;
use narinfo_gen::narinfo::MAX_SIZE;

use crate::remote::etag::{Md5Tag, md5_tag_of};
use crate::remote::text_file::{Span, TextFile, read_span};

/// Narinfos in files, found by the MD5 hashes of their texts. 32 bytes of memory per narinfo of an earlier run, and about
/// twice that per narinfo of an earlier pass.
#[derive(Debug)]
pub struct KnownTexts {
    /// Those of an earlier run.
    earlier: Option<Earlier>,
    /// Those of an earlier pass, if they are remembered.
    remembered: Option<Mutex<Remembered>>,
}

#[derive(Debug, Clone)]
struct Earlier {
    file: Arc<File>,
    /// Sorted by hash.
    texts: Arc<[(Md5Tag, Span)]>,
}

/// Those that were read, in a temporary file.
#[derive(Debug)]
struct Remembered {
    /// None after a failure: then nothing more is remembered.
    file: Option<TextFile>,
    texts: HashMap<Md5Tag, Span>,
}

impl KnownTexts {
    /// Reads a file of narinfo text, which must be a regular file.
    ///
    /// # Errors
    /// Fails if it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let action = || format!("cannot read {}", path.display());
        let file = File::open(path).map_err(Error::from).context(action)?;
        if !file.metadata().map_err(Error::from).context(action)?.is_file() {
            return Err(Error::usage(format!("{}: expected a regular file of narinfo text", path.display())));
        }
        let reader = BufReader::new(file.try_clone().map_err(Error::from).context(action)?);
        let mut texts = index(reader).context(action)?;
        texts.sort_unstable_by_key(|(md5, _)| *md5);
        Ok(Self { earlier: Some(Earlier { file: Arc::new(file), texts: texts.into() }), remembered: None })
    }

    /// Returns the texts of an earlier run, if there is one, to which those that are read from now on are added.
    ///
    /// # Errors
    /// Fails if a temporary file cannot be created.
    pub fn remembering(earlier: Option<&Self>) -> Result<Self> {
        let remembered = Remembered { file: Some(TextFile::new()?), texts: HashMap::new() };
        let earlier = earlier.and_then(|known| known.earlier.clone());
        Ok(Self { earlier, remembered: Some(Mutex::new(remembered)) })
    }

    /// Returns the text with this hash, if it is known.
    #[must_use]
    pub fn get(&self, md5: Md5Tag) -> Option<String> {
        // Another process may have changed a file.
        let is_unchanged = |text: &String| md5_tag_of(text.as_bytes()) == md5;
        if let Some(Earlier { file, texts }) = &self.earlier
            && let Ok(found) = texts.binary_search_by_key(&md5, |(md5, _)| *md5)
            && let Some(text) = read_span(file, texts[found].1).ok().filter(is_unchanged)
        {
            return Some(text);
        }
        let remembered = lock(self.remembered.as_ref()?);
        let span = *remembered.texts.get(&md5)?;
        remembered.file.as_ref()?.read(span).ok().filter(is_unchanged)
    }

    /// Adds a text that was read from an object with this entity tag, if texts are remembered and the tag is its hash. After
    /// an error of the temporary file, texts are read again instead.
    pub fn add(&self, md5: Md5Tag, text: &str) {
        let Some(remembered) = &self.remembered else { return };
        if md5_tag_of(text.as_bytes()) != md5 {
            return;
        }
        let mut remembered = lock(remembered);
        match remembered.file.as_mut().map(|file| file.append(text)) {
            Some(Ok(span)) => drop(remembered.texts.insert(md5, span)),
            Some(Err(_)) => *remembered = Remembered { file: None, texts: HashMap::new() },
            None => {}
        }
    }
}

/// Finds the texts, which blank lines separate.
fn index(mut input: impl BufRead) -> Result<Vec<(Md5Tag, Span)>> {
    let mut texts = Vec::new();
    let (mut start, mut end) = (0, 0);
    let mut hasher = Md5::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        // A longer line is no line of a narinfo; its parts need not be recognized.
        let length = (&mut input).take(MAX_SIZE as u64).read_until(b'\n', &mut line)? as u64;
        if line.is_empty() || line == b"\n" {
            let md5 = hasher.finalize_reset().into();
            if let Some(length) =
                u32::try_from(end - start).ok().filter(|length| (1..=MAX_SIZE).contains(&(*length as usize)))
            {
                texts.push((md5, Span { start, length }));
            }
            if line.is_empty() {
                return Ok(texts);
            }
            start = end + length;
        } else {
            hasher.update(&line);
        }
        end += length;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn known(contents: &[u8]) -> KnownTexts {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        KnownTexts::open(file.path()).unwrap()
    }

    #[test]
    fn a_text_is_found_by_its_hash() {
        let known = known(b"\n\nStorePath: a\nURL: x\n\n\nStorePath: b\n\nStorePath: c");
        for text in ["StorePath: a\nURL: x\n", "StorePath: b\n", "StorePath: c"] {
            assert_eq!(known.get(md5_tag_of(text.as_bytes())).as_deref(), Some(text));
        }
        for text in ["", "\n", "StorePath: a\n", "StorePath: c\n"] {
            assert_eq!(known.get(md5_tag_of(text.as_bytes())), None, "{text:?}");
        }
    }

    #[test]
    fn what_was_read_is_remembered_if_its_entity_tag_is_its_hash() {
        let earlier = known(b"StorePath: a\n");
        let (a, b, c) = ("StorePath: a\n", "StorePath: b\n", "StorePath: c\n");
        let [md5_a, md5_b, md5_c] = [a, b, c].map(|text| md5_tag_of(text.as_bytes()));
        earlier.add(md5_b, b);
        assert_eq!(earlier.get(md5_b), None);
        for known in [KnownTexts::remembering(Some(&earlier)).unwrap(), KnownTexts::remembering(None).unwrap()] {
            known.add(md5_b, b);
            known.add(md5_c, b);
            assert_eq!((known.get(md5_b).as_deref(), known.get(md5_c)), (Some(b), None));
            assert_eq!(known.get(md5_a).is_some(), known.earlier.is_some());
        }
    }

    #[test]
    fn any_bytes_are_accepted_and_what_is_too_large_or_not_text_is_not_found() {
        let large = "x\n".repeat(MAX_SIZE);
        let known = known(&[large.as_bytes(), b"\n\xff\xfe\n\n", "y".repeat(3 * MAX_SIZE).as_bytes()].concat());
        assert_eq!(known.get(md5_tag_of(large.as_bytes())), None);
        assert_eq!(known.get(md5_tag_of(b"\xff\xfe\n")), None);
    }

    #[test]
    fn a_text_that_has_changed_since_is_not_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "StorePath: a\n").unwrap();
        let known = KnownTexts::open(file.path()).unwrap();
        let hash = md5_tag_of(b"StorePath: a\n");
        assert!(known.get(hash).is_some());
        std::fs::write(file.path(), "StorePath: b\n").unwrap();
        assert_eq!(known.get(hash), None);
        std::fs::write(file.path(), "").unwrap();
        assert_eq!(known.get(hash), None);
    }
}
