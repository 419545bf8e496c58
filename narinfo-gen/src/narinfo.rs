//! The narinfo: reading and writing (Nix's `src/libstore/nar-info.cc`).

use std::fmt::{self, Write as _};
use std::io::{BufRead, Write};
use std::num::NonZeroU64;

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::utf8;
use nar_pack::store_path::{StoreDir, StorePath};

use crate::hash::Sha256;

/// Longest narinfo that is accepted, in bytes.
pub const MAX_SIZE: usize = 1 << 20;

/// What a binary cache says of a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The store directory of the path.
    pub store_dir: StoreDir,
    /// The path.
    pub path: StorePath,
    /// Key of the NAR, relative to the cache.
    pub url: String,
    /// How the NAR is compressed, by name; `bzip2` when the narinfo does not say.
    pub compression: String,
    /// Hash of the compressed NAR; absent in some narinfos.
    pub file_hash: Option<Sha256>,
    /// Size of the compressed NAR in bytes.
    pub file_size: Option<u64>,
    /// Hash of the NAR.
    pub nar_hash: Sha256,
    /// Size of the NAR in bytes; never 0.
    pub nar_size: u64,
    /// What the path refers to, sorted.
    pub references: Vec<StorePath>,
    /// The derivation that built it.
    pub deriver: Option<StorePath>,
    /// Signatures, byte for byte.
    pub signatures: Vec<String>,
    /// Content address.
    pub ca: Option<String>,
    /// Lines with keys that this program does not know, in their order.
    pub unknown: Vec<(String, String)>,
}

impl NarInfo {
    /// The narinfo as it is written.
    ///
    /// # Errors
    /// Refuses what is larger than [`NarInfo::parse`] takes.
    pub fn to_text(&self) -> Result<String> {
        let text = self.to_string();
        if text.len() > MAX_SIZE {
            return Err(Error::refused(format!(
                "{}: with all that is to be written, the narinfo is larger than {MAX_SIZE} bytes",
                self.full_path()
            )));
        }
        Ok(text)
    }

    /// Parses one narinfo.
    ///
    /// # Errors
    /// Refuses what is malformed or of another store directory, with the number of the line.
    pub fn parse(text: &str, store_dir: &StoreDir) -> Result<Self> {
        if text.len() > MAX_SIZE {
            return Err(Error::refused(format!("narinfo is larger than {MAX_SIZE} bytes")));
        }
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(Error::refused("narinfo is cut off: its last line has no end"));
        }
        let mut fields = Fields::default();
        // Not `lines`: to Nix a carriage return is part of the value, and so it is when the value is written again.
        for (index, line) in text.split_terminator('\n').enumerate() {
            fields.line(line, store_dir).context(|| format!("narinfo, line {}", index + 1))?;
        }
        fields.finish(store_dir)
    }

    /// Key of the narinfo in its cache.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}.narinfo", self.path.hash_part())
    }

    /// The full store path.
    #[must_use]
    pub fn full_path(&self) -> String {
        self.store_dir.join(&self.path)
    }

    /// What a signature signs (Nix's `ValidPathInfo::fingerprint`): `1;PATH;NAR-HASH;NAR-SIZE;REFERENCES`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let references: Vec<String> = self.references.iter().map(|path| self.store_dir.join(path)).collect();
        format!("1;{};{};{};{}", self.full_path(), self.nar_hash, self.nar_size, references.join(","))
    }

    /// Adds a signature unless it is there already.
    pub fn add_signature(&mut self, signature: String) {
        if !self.signatures.contains(&signature) {
            self.signatures.push(signature);
            self.signatures.sort_unstable();
        }
    }

    /// Takes over what another narinfo of the same contents has and this one lacks: signatures, deriver, content
    /// address, unknown fields.
    #[must_use]
    pub fn completed_by(mut self, other: &Self) -> Self {
        for signature in &other.signatures {
            self.add_signature(signature.clone());
        }
        self.deriver = self.deriver.or_else(|| other.deriver.clone());
        self.ca = self.ca.or_else(|| other.ca.clone());
        for (key, value) in &other.unknown {
            if !self.unknown.iter().any(|(known, _)| known == key) {
                self.unknown.push((key.clone(), value.clone()));
            }
        }
        self
    }

    /// Whether both describe the same path with the same contents and references, whatever the file and signatures.
    #[must_use]
    pub fn same_contents(&self, other: &Self) -> bool {
        (&self.path, self.nar_hash, self.nar_size, &self.references)
            == (&other.path, other.nar_hash, other.nar_size, &other.references)
    }
}

/// The text of the narinfo, in the order of Nix's writer.
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
        // The space stays when there are none: Nix's parser takes the two characters after each key.
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

#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: Option<String>,
    compression: Option<String>,
    file_hash: Option<Sha256>,
    file_size: Option<u64>,
    nar_hash: Option<Sha256>,
    nar_size: Option<NonZeroU64>,
    references: Option<Vec<StorePath>>,
    deriver: Option<StorePath>,
    signatures: Vec<String>,
    ca: Option<String>,
    unknown: Vec<(String, String)>,
}

/// Sets a field that may stand once.
fn once<T>(field: &mut Option<T>, value: T) -> Result {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::refused("the field is there twice")),
    }
}

fn number(text: &str) -> Result<u64> {
    let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| plain).ok_or_else(|| Error::refused(format!("{text:?} is not a number of bytes")))
}

impl Fields {
    fn line(&mut self, line: &str, store_dir: &StoreDir) -> Result {
        let (key, value) = line.split_once(':').ok_or_else(|| Error::refused("expected KEY: VALUE"))?;
        let value = match value.strip_prefix(' ') {
            Some(value) => value,
            None if value.is_empty() => value,
            None => return Err(Error::refused(format!("expected a space after {key}:"))),
        };
        self.field(key, value, store_dir).context(|| key.to_owned())
    }

    fn field(&mut self, key: &str, value: &str, store_dir: &StoreDir) -> Result {
        match key {
            "StorePath" => once(&mut self.path, store_dir.parse(value)?),
            "URL" => once(&mut self.url, parse_url(value)?),
            "Compression" => once(&mut self.compression, value.to_owned()),
            "FileHash" => once(&mut self.file_hash, Sha256::parse(value)?),
            "FileSize" => once(&mut self.file_size, number(value)?),
            "NarHash" => once(&mut self.nar_hash, Sha256::parse(value)?),
            "NarSize" => once(
                &mut self.nar_size,
                NonZeroU64::new(number(value)?).ok_or_else(|| Error::refused("no NAR has no bytes"))?,
            ),
            "References" => {
                let mut paths = value
                    .split(' ')
                    .filter(|w| !w.is_empty())
                    .map(StorePath::from_base_name)
                    .collect::<Result<Vec<_>>>()?;
                paths.sort_unstable();
                paths.dedup();
                once(&mut self.references, paths)
            }
            "Deriver" if value == "unknown-deriver" || value.is_empty() => Ok(()),
            "Deriver" => once(&mut self.deriver, StorePath::from_base_name(value)?),
            "Sig" => {
                if !value.is_empty() && !self.signatures.iter().any(|sig| sig == value) {
                    self.signatures.push(value.to_owned());
                }
                Ok(())
            }
            "CA" if value.is_empty() => Ok(()),
            "CA" => once(&mut self.ca, value.to_owned()),
            _ if key.is_empty() => Err(Error::refused("a key is missing")),
            _ => {
                self.unknown.push((key.to_owned(), value.to_owned()));
                Ok(())
            }
        }
    }

    fn finish(self, store_dir: &StoreDir) -> Result<NarInfo> {
        let missing = |key: &str| Error::refused(format!("narinfo: {key} is missing"));
        let compression = self.compression.filter(|name| !name.is_empty());
        Ok(NarInfo {
            store_dir: store_dir.clone(),
            path: self.path.ok_or_else(|| missing("StorePath"))?,
            url: self.url.ok_or_else(|| missing("URL"))?,
            compression: compression.unwrap_or_else(|| "bzip2".to_owned()),
            file_hash: self.file_hash,
            file_size: self.file_size,
            nar_hash: self.nar_hash.ok_or_else(|| missing("NarHash"))?,
            nar_size: self.nar_size.ok_or_else(|| missing("NarSize"))?.get(),
            // Nix would take a narinfo without this line, but never writes one: it was cut off.
            references: self.references.ok_or_else(|| missing("References"))?,
            deriver: self.deriver,
            signatures: self.signatures,
            ca: self.ca,
            unknown: self.unknown,
        })
    }
}

/// A URL is a key relative to the cache; one that leaves the cache is refused.
fn parse_url(value: &str) -> Result<String> {
    let lower = value.to_ascii_lowercase();
    // Servers decode what is percent-encoded.
    let hidden = ["%2e", "%2f", "%5c", "%00"].iter().any(|code| lower.contains(code));
    let inside = !hidden
        && !value.is_empty()
        && !value.starts_with('/')
        && !value.contains("://")
        && value.split(['/', '\\']).all(|part| part != ".." && part != ".")
        && !value.contains(|c: char| c.is_control() || c == ' ');
    if inside { Ok(value.to_owned()) } else { Err(Error::refused(format!("{value:?} does not lie within the cache"))) }
}

/// Reads narinfo text: narinfos with one blank line between two. Each is handed on as soon as it is complete, with
/// whether another follows.
///
/// A blank line says that another narinfo follows, so text that ends in one is cut off.
///
/// # Errors
/// Refuses empty, malformed or truncated text, and says which narinfo it was; passes on what `each` returns.
pub fn read_text(
    mut input: impl BufRead,
    store_dir: &StoreDir,
    mut each: impl FnMut(NarInfo, bool) -> Result,
) -> Result {
    for count in 1_u64.. {
        let mut text = Vec::new();
        let at = || format!("narinfo {count} of the stream");
        let more = read_block(&mut input, &mut text).context(at)?;
        let narinfo = utf8(text).context(at)?;
        each(NarInfo::parse(&narinfo, store_dir).context(at)?, more)?;
        if !more {
            break;
        }
    }
    Ok(())
}

/// One narinfo, and whether another follows.
fn read_block(input: &mut impl BufRead, text: &mut Vec<u8>) -> Result<bool> {
    loop {
        let before = text.len();
        let left = (MAX_SIZE + 1 - before) as u64;
        std::io::Read::take(&mut *input, left).read_until(b'\n', text)?;
        if text.len() > MAX_SIZE {
            return Err(Error::refused(format!("larger than {MAX_SIZE} bytes")));
        }
        match &text[before..] {
            [] if before == 0 => return Err(Error::refused("the stream ends where a narinfo should begin")),
            [] => return Ok(false),
            b"\n" if before > 0 => {
                text.pop();
                return Ok(true);
            }
            _ => {}
        }
    }
}

/// Writes narinfo text. What is cut off ends in a blank line, if the writer still gets to it.
#[derive(Debug)]
pub struct TextWriter<W> {
    out: W,
    state: Separator,
}

#[derive(Debug, PartialEq)]
enum Separator {
    NotYet,
    Due,
    Written,
}

impl<W: Write> TextWriter<W> {
    /// Begins text on `out`.
    pub fn new(out: W) -> Self {
        Self { out, state: Separator::NotYet }
    }

    /// Writes a narinfo; `more` when it is certain that another follows, which then shows in the text at once.
    ///
    /// # Errors
    /// What the output and [`NarInfo::to_text`] say.
    pub fn write(&mut self, narinfo: &NarInfo, more: bool) -> Result {
        let text = narinfo.to_text()?;
        let before = if self.state == Separator::Due { "\n" } else { "" };
        write!(self.out, "{before}{text}{}", if more { "\n" } else { "" })?;
        self.state = if more { Separator::Written } else { Separator::Due };
        Ok(self.out.flush()?)
    }

    /// Marks the text as cut off, because what should follow failed.
    pub fn cut_off(&mut self) {
        if self.state == Separator::Due {
            // It failed already; that this fails too changes nothing.
            let _ = self.out.write_all(b"\n").and_then(|()| self.out.flush());
            self.state = Separator::Written;
        }
    }

    /// Gives the output back.
    pub fn into_inner(self) -> W {
        self.out
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
    fn reading_and_writing_gives_the_same_text() {
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
            let failure = NarInfo::parse(&TEXT.replacen(from, to, 1), &dir()).unwrap_err();
            assert!(failure.is_refusal() && failure.message().contains(line), "{to}: {failure}");
        }
    }

    #[test]
    fn needed_fields_are_missed() {
        for key in ["StorePath", "URL", "NarHash", "NarSize", "References"] {
            let text: String = TEXT.lines().filter(|l| !l.starts_with(key)).fold(String::new(), |t, l| t + l + "\n");
            let failure = NarInfo::parse(&text, &dir()).unwrap_err();
            assert!(failure.message().contains(key), "{failure}");
        }
    }

    #[test]
    fn text_that_is_cut_off_anywhere_is_refused_or_holds_fewer_fields() {
        let stream = format!("{TEXT}\n{TEXT}");
        let count = |text: &str| {
            let mut seen = 0;
            read_text(text.as_bytes(), &dir(), |_, _| {
                seen += 1;
                Ok(())
            })
            .map(|()| seen)
        };
        assert_eq!(count(&stream).unwrap(), 2);
        for text in ["", "\n", &format!("{TEXT}\n"), &format!("{TEXT}\n\n{TEXT}"), &TEXT[..TEXT.len() - 1]] {
            assert!(count(text).unwrap_err().is_refusal(), "{text:?}");
        }
    }
}
