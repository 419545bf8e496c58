//! The narinfos that are known from an earlier run: a file of narinfo text. An object whose entity tag is the MD5 hash of
//! a text in the file need not be read. Nothing else in the file counts, so it may be old, truncated or of another cache.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use md5::{Digest as _, Md5};
use nar_pack::error::{Context, Error, Result};
use narinfo_gen::narinfo::MAX_SIZE;

use crate::remote::etag::{Md5Tag, md5_tag_of};

/// Narinfos in a file, found by the MD5 hashes of their texts. 32 bytes of memory per narinfo.
#[derive(Debug)]
pub struct KnownTexts {
    file: File,
    /// Sorted by hash.
    texts: Vec<KnownText>,
}

#[derive(Debug, Clone, Copy)]
struct KnownText {
    md5: Md5Tag,
    /// Offset in the file, in bytes.
    start: u64,
    /// In bytes.
    length: u32,
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
        texts.sort_unstable_by_key(|text| text.md5);
        Ok(Self { file, texts })
    }

    /// Returns the text with this hash, if the file contains it.
    #[must_use]
    pub fn get(&self, md5: Md5Tag) -> Option<String> {
        let found = self.texts.binary_search_by_key(&md5, |text| text.md5).ok()?;
        let KnownText { start, length, .. } = self.texts[found];
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, start).ok()?;
        // Another process may have changed the file.
        let text = String::from_utf8(bytes).ok()?;
        (md5_tag_of(text.as_bytes()) == md5).then_some(text)
    }
}

/// Finds the texts, which blank lines separate.
fn index(mut input: impl BufRead) -> Result<Vec<KnownText>> {
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
                texts.push(KnownText { md5, start, length });
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
