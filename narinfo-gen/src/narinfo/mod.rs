//! The narinfo: the description of a store path in a binary cache (Nix's `src/libstore/nar-info.cc`), and the text format
//! of one or many.

mod json;
mod parse;
mod text;

use std::fmt::{self, Write as _};

use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{HashPart, StoreDir, StorePath};

use crate::archive::narinfo_key;
use crate::hash::Sha256;

pub(crate) use parse::is_signature;
pub use text::{TextWriter, read_text, read_verbatim_text};

/// Maximum size of a narinfo, in bytes.
pub const MAX_SIZE: usize = 1 << 20;

/// The description of a store path in a binary cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The store directory of the path.
    pub store_dir: StoreDir,
    /// The store path.
    pub path: StorePath,
    /// Key of the NAR, relative to the root of the cache.
    pub url: String,
    /// Name of the compression method; `bzip2` if the narinfo has none.
    pub compression: String,
    /// Hash of the compressed NAR; some caches omit it.
    pub file_hash: Option<Sha256>,
    /// Size of the compressed NAR in bytes.
    pub file_size: Option<u64>,
    /// Hash of the NAR.
    pub nar_hash: Sha256,
    /// Size of the NAR in bytes; never 0.
    pub nar_size: u64,
    /// The paths that this path refers to, sorted.
    pub references: Vec<StorePath>,
    /// The derivation that built the path.
    pub deriver: Option<StorePath>,
    /// Signatures, unchanged.
    pub signatures: Vec<String>,
    /// Content address.
    pub ca: Option<String>,
    /// Fields unknown to this version, in their order.
    pub unknown: Vec<(String, String)>,
}

impl NarInfo {
    /// Parses one narinfo.
    ///
    /// # Errors
    /// Refuses a malformed narinfo, and one of another store directory, with the line number.
    pub fn parse(text: &str, store_dir: &StoreDir) -> Result<Self> {
        parse::parse(text, store_dir)
    }

    /// Parses the narinfo whose key has the hash part `hash`.
    ///
    /// # Errors
    /// As [`NarInfo::parse`]. Refuses a narinfo that describes another path.
    pub fn parse_of(hash: HashPart, text: &str, store_dir: &StoreDir) -> Result<Self> {
        let narinfo = Self::parse(text, store_dir)?;
        if narinfo.path.hash_part() != hash {
            return Err(Error::refused(format!("it describes another path, {}", narinfo.full_path())));
        }
        Ok(narinfo)
    }

    /// Returns the text of the narinfo. Every writer of narinfos uses it; `to_string` checks nothing.
    ///
    /// # Errors
    /// Refuses a narinfo with a control character in a field, such as the line feed that would start another field, and
    /// one that is larger than [`NarInfo::parse`] accepts.
    pub fn to_text(&self) -> Result<String> {
        self.require_no_control_characters().context(|| self.full_path())?;
        let text = self.to_string();
        if text.len() > MAX_SIZE {
            let path = self.full_path();
            return Err(Error::refused(format!("{path}: the narinfo would be larger than {MAX_SIZE} bytes")));
        }
        Ok(text)
    }

    /// Checks the fields that are plain text; the types of the others cannot hold control characters.
    fn require_no_control_characters(&self) -> Result {
        let signatures = self.signatures.iter().map(|signature| ("Sig", signature));
        let unknown = self.unknown.iter().map(|(key, value)| (key.as_str(), value));
        [("URL", &self.url), ("Compression", &self.compression)]
            .into_iter()
            .chain(signatures)
            .chain(self.ca.iter().map(|ca| ("CA", ca)))
            .chain(unknown)
            .try_for_each(|(key, value)| require_no_control_characters(key, value))
    }

    /// Returns the key of the narinfo in a cache.
    #[must_use]
    pub fn key(&self) -> String {
        narinfo_key(self.path.hash_part())
    }

    /// Returns the full store path.
    #[must_use]
    pub fn full_path(&self) -> String {
        self.store_dir.join(&self.path)
    }

    /// Returns the text that signatures sign (Nix's `ValidPathInfo::fingerprint`):
    /// `1;PATH;NAR-HASH;NAR-SIZE;REFERENCES`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let references: Vec<String> = self.references.iter().map(|path| self.store_dir.join(path)).collect();
        format!("1;{};{};{};{}", self.full_path(), self.nar_hash, self.nar_size, references.join(","))
    }

    /// Adds a signature unless the narinfo has it already.
    pub fn add_signature(&mut self, signature: String) {
        if !self.signatures.contains(&signature) {
            self.signatures.push(signature);
            self.signatures.sort_unstable();
        }
    }

    /// Returns this narinfo, merged with another one of the same contents: adds the signatures, deriver, content address
    /// and unknown fields that only `other` has. Where both have an unknown field, this narinfo's value is kept, unless one
    /// of them repeats the field: then it is a list, and the values that only `other` has are added.
    #[must_use]
    pub fn merged_with(mut self, other: &Self) -> Self {
        for signature in &other.signatures {
            self.add_signature(signature.clone());
        }
        self.deriver = self.deriver.or_else(|| other.deriver.clone());
        self.ca = self.ca.or_else(|| other.ca.clone());
        let count = |fields: &[(String, String)], key: &str| fields.iter().filter(|(other, _)| other == key).count();
        let added = other.unknown.iter().filter(|field| match count(&self.unknown, &field.0) {
            0 => true,
            1 if count(&other.unknown, &field.0) == 1 => false,
            _ => !self.unknown.contains(field),
        });
        let added: Vec<_> = added.cloned().collect();
        self.unknown.extend(added);
        self
    }

    /// Returns whether both describe the same path with the same contents and references. The compressed file and the
    /// signatures may differ.
    #[must_use]
    pub fn same_contents(&self, other: &Self) -> bool {
        (&self.path, self.nar_hash, self.nar_size, &self.references)
            == (&other.path, other.nar_hash, other.nar_size, &other.references)
    }
}

/// Refuses a field of a narinfo whose name or value contains a control character: it could start another field in a
/// writer, or control the terminal of whoever looks at it. Nix keeps a carriage return as part of the value.
fn require_no_control_characters(key: &str, value: &str) -> Result {
    let Some(found) = key.chars().chain(value.chars()).find(|c| c.is_control()) else { return Ok(()) };
    let error = Error::refused(format!("field {key:?} contains the control character {found:?}"));
    Err(if value.ends_with('\r') {
        error.with_hint("a narinfo must have lines that end with LF, not CR LF")
    } else {
        error
    })
}

/// The text of the narinfo, with its fields in the order in which Nix writes them.
impl fmt::Display for NarInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StorePath: {}", self.full_path())?;
        writeln!(f, "URL: {}", self.url)?;
        writeln!(f, "Compression: {}", self.compression)?;
        if let Some(hash) = self.file_hash {
            writeln!(f, "FileHash: {hash}")?;
        }
        if let Some(size) = self.file_size {
            writeln!(f, "FileSize: {size}")?;
        }
        writeln!(f, "NarHash: {}\nNarSize: {}", self.nar_hash, self.nar_size)?;
        let mut references = String::new();
        for path in &self.references {
            write!(references, "{}{path}", if references.is_empty() { "" } else { " " })?;
        }
        // Without references the space stays, because Nix's parser skips two characters after each field name.
        writeln!(f, "References: {references}")?;
        if let Some(deriver) = &self.deriver {
            writeln!(f, "Deriver: {deriver}")?;
        }
        for signature in &self.signatures {
            writeln!(f, "Sig: {signature}")?;
        }
        if let Some(ca) = &self.ca {
            writeln!(f, "CA: {ca}")?;
        }
        for (key, value) in &self.unknown {
            writeln!(f, "{key}: {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
StorePath: /nix/store/02dlwc21njky62v7q7ffcb10000n2grx-top
URL: nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.zst
Compression: zstd
FileHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
FileSize: 18446744073709551615
NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
NarSize: 160
References: h7jx3wrzn6m9vjl9604id854qx1xyqw6-dep
Deriver: qdg5s19qp4l9vbj6s2rsgp4rs6gxfimw-top.drv
Sig: a:xyz==
Sig: b:123==
CA: text:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73
Provenance: {\"x\": 1}
";

    fn dir() -> StoreDir {
        StoreDir::new("/nix/store").unwrap()
    }

    #[test]
    fn a_parsed_narinfo_is_written_as_the_same_text() {
        assert_eq!(NarInfo::parse(TEXT, &dir()).unwrap().to_string(), TEXT);
        let bare = TEXT.replace("References: h7jx3wrzn6m9vjl9604id854qx1xyqw6-dep", "References: ");
        assert_eq!(NarInfo::parse(&bare, &dir()).unwrap().to_string(), bare);
    }

    #[test]
    fn a_missing_compression_is_bzip2() {
        let text = TEXT.replace("Compression: zstd\n", "");
        assert_eq!(NarInfo::parse(&text, &dir()).unwrap().compression, "bzip2");
    }

    #[test]
    fn errors_name_the_line() {
        for (from, to, line) in [
            ("NarSize: 160", "NarSize: -1", "line 7"),
            ("NarSize: 160", "NarSize: 18446744073709551616", "line 7"),
            ("NarSize: 160", "NarSize", "line 7"),
            ("FileHash: sha256:0", "FileHash: sha256:e", "line 4"),
            ("/nix/store/02", "/gnu/store/02", "line 1"),
            ("URL: nar/", "URL: ../", "line 2"),
            ("URL: nar/", "URL: https://evil.example/", "line 2"),
            ("Compression: zstd", "NarSize: 160\nNarSize: 160", "line 4"),
            ("NarSize: 160", "NarSize: 160\r", "line 7"),
        ] {
            let error = NarInfo::parse(&TEXT.replacen(from, to, 1), &dir()).unwrap_err();
            assert!(error.is_refusal() && error.message().contains(line), "{to}: {error}");
        }
    }

    #[test]
    fn required_fields_must_be_there() {
        for key in ["StorePath", "URL", "NarHash", "NarSize", "References"] {
            let text: String = TEXT.lines().filter(|l| !l.starts_with(key)).fold(String::new(), |t, l| t + l + "\n");
            let error = NarInfo::parse(&text, &dir()).unwrap_err();
            assert!(error.message().contains(key), "{error}");
        }
    }

    #[test]
    fn narinfo_text_is_refused_if_empty_or_truncated() {
        let stream = format!("{TEXT}\n{TEXT}");
        let count_narinfos = |text: &str| {
            let mut count = 0;
            read_text(text.as_bytes(), &dir(), |_, _| {
                count += 1;
                Ok(())
            })
            .map(|()| count)
        };
        assert_eq!(count_narinfos(&stream).unwrap(), 2);
        for blank in ["\n", "\n\n\n"] {
            assert_eq!(count_narinfos(&format!("{TEXT}{blank}")).unwrap(), 1, "{blank:?}");
            assert_eq!(count_narinfos(&format!("{TEXT}{blank}{TEXT}{blank}")).unwrap(), 2, "{blank:?}");
        }
        for text in ["", "\n", &format!("{TEXT}\nStorePath: "), &TEXT[..TEXT.len() - 1]] {
            assert!(count_narinfos(text).unwrap_err().is_refusal(), "{text:?}");
        }
    }

    /// The blank line between two narinfos is valid at the end of the text too, so the writer continues with the beginning
    /// of the next narinfo.
    #[test]
    fn text_without_a_narinfo_that_was_announced_is_truncated() {
        let narinfo = NarInfo::parse(TEXT, &dir()).unwrap();
        let read = |text: &[u8]| {
            let mut followed = Vec::new();
            read_text(text, &dir(), |_, more| {
                followed.push(more);
                Ok(())
            })
            .map(|()| followed)
        };
        let mut writer = TextWriter::new(Vec::new());
        writer.write(&narinfo, true).unwrap();
        let mut failed = TextWriter::new(Vec::new());
        failed.write(&narinfo, false).unwrap();
        failed.mark_truncated();
        failed.mark_truncated();
        for text in [writer.into_inner(), failed.into_inner()] {
            let error = read(&text).unwrap_err();
            assert!(error.is_refusal() && error.message().contains("narinfo 2"), "{error}");
        }
        let mut writer = TextWriter::new(Vec::new());
        for more in [true, false, true, false] {
            writer.write(&narinfo, more).unwrap();
        }
        let text = writer.into_inner();
        assert_eq!(String::from_utf8(text.clone()).unwrap(), [TEXT; 4].join("\n"));
        assert_eq!(read(&text).unwrap(), [true, true, true, false]);
    }

    #[test]
    fn control_characters_are_refused_when_a_narinfo_is_read_or_written() {
        for (from, to) in [
            ("Compression: zstd", "Compression: zs\u{1b}[2Jtd"),
            ("Compression: zstd", "Compression: zstd\0"),
            ("CA: text:", "CA: \u{85}text:"),
            ("Sig: a:", "Sig: a\u{7f}:"),
            ("Sig: a:", "Sig: a:\t"),
            ("Provenance: ", "Provenance: \t"),
            ("Provenance: ", "Prov\u{7}enance: "),
            ("NarSize: 160", "NarSize: 160\r"),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT);
            let error = NarInfo::parse(&text, &dir()).unwrap_err();
            assert!(error.is_refusal() && error.message().contains("control character"), "{to:?}: {error}");
            assert!(read_text(text.as_bytes(), &dir(), |_, _| Ok(())).unwrap_err().is_refusal(), "{to:?}");
        }
        let valid = NarInfo::parse(TEXT, &dir()).unwrap();
        let bad = "x\nSig: a:b".to_owned();
        for changed in [
            NarInfo { url: bad.clone(), ..valid.clone() },
            NarInfo { compression: bad.clone(), ..valid.clone() },
            NarInfo { signatures: vec![bad.clone()], ..valid.clone() },
            NarInfo { ca: Some(bad.clone()), ..valid.clone() },
            NarInfo { unknown: vec![(bad.clone(), String::new())], ..valid.clone() },
            NarInfo { unknown: vec![("Key".to_owned(), bad)], ..valid.clone() },
        ] {
            let error = changed.to_text().unwrap_err();
            assert!(error.is_refusal() && error.message().contains(&valid.full_path()), "{error}");
            assert!(TextWriter::new(Vec::new()).write(&changed, false).is_err());
        }
    }

    #[test]
    fn merging_loses_no_unknown_field() {
        let with = |fields: &str| NarInfo::parse(&format!("{TEXT}{fields}"), &dir()).unwrap();
        let merged = |a: &str, b: &str| {
            let text = with(a).merged_with(&with(b)).to_text().unwrap();
            text.strip_prefix(TEXT).unwrap().to_owned()
        };
        // A field that neither has twice has one value; the first one wins. A repeated field is a list.
        assert_eq!(merged("X: 1\n", "X: 2\nY: 3\n"), "X: 1\nY: 3\n");
        assert_eq!(merged("X: 1\n", "X: 2\nX: 1\nX: 3\n"), "X: 1\nX: 2\nX: 3\n");
        assert_eq!(merged("X: 1\nX: 2\n", "X: 3\n"), "X: 1\nX: 2\nX: 3\n");
        assert_eq!(merged("X: 1\nX: 1\n", "X: 1\n"), "X: 1\nX: 1\n");
        assert_eq!(merged("", "X: 1\nX: 1\n"), "X: 1\nX: 1\n");
    }
}
