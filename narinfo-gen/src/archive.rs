//! The cache archive: a tar whose members are the objects of a binary cache under their keys.

use std::io::{self, BufRead, Read, Write};
use std::mem::ManuallyDrop;

use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::HashPart;

use crate::cache_info;
use crate::hash::{BASE32_DIGITS, Sha256};
use crate::narinfo::{self, NarInfo};

/// Longest key that is accepted, in bytes (the limit of S3).
const MAX_KEY: usize = 1024;

/// Longest extended header of a tar that is accepted, in bytes.
const MAX_EXTENSION: u64 = 64 * 1024;

/// What an object of a binary cache is, told from its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// `nix-cache-info`.
    CacheInfo,
    /// `<hash part>.narinfo`.
    Narinfo(HashPart),
    /// `nar/<FileHash>.nar…`, or `nar/…` under a name that tells no hash.
    Nar(Option<Sha256>),
    /// `<hash part>.ls`.
    Listing(HashPart),
    /// `log/…`.
    Log,
    /// `debuginfo/…`.
    DebugInfo,
    /// `realisations/…`, or `build-trace-v2/…` from Nix 2.35 on.
    Realisation,
}

impl Object {
    /// What the object with that key is, if it belongs to a binary cache at all.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Self> {
        let hash_part = |suffix: &str| key.strip_suffix(suffix).and_then(|stem| HashPart::parse(stem.as_bytes()));
        if key == cache_info::KEY {
            return Some(Self::CacheInfo);
        }
        if let Some(hash) = hash_part(".narinfo") {
            return Some(Self::Narinfo(hash));
        }
        if let Some(hash) = hash_part(".ls") {
            return Some(Self::Listing(hash));
        }
        let (folder, name) = key.split_once('/')?;
        match folder {
            "nar" => Some(Self::Nar(name.get(..BASE32_DIGITS).and_then(Sha256::from_base32))),
            "log" => Some(Self::Log),
            "debuginfo" => Some(Self::DebugInfo),
            "realisations" | "build-trace-v2" => Some(Self::Realisation),
            _ => None,
        }
    }

    /// The content type that Nix gives such objects.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::CacheInfo => "text/x-nix-cache-info",
            Self::Narinfo(_) => "text/x-nix-narinfo",
            Self::Nar(_) => "application/x-nix-nar",
            Self::Listing(_) | Self::DebugInfo | Self::Realisation => "application/json",
            Self::Log => "text/plain; charset=utf-8",
        }
    }
}

/// Writes a cache archive; it is whole after [`Writer::finish`], and cut off when it is dropped before.
pub struct Writer<W: Write> {
    /// Never dropped, because `tar` would then write the end of the archive even after a failure.
    tar: ManuallyDrop<tar::Builder<W>>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive on `out`.
    pub fn new(out: W) -> Self {
        Self { tar: ManuallyDrop::new(tar::Builder::new(out)) }
    }

    /// Writes a member of `size` bytes.
    ///
    /// # Errors
    /// What `body` or the output says; refuses a body of another size, after which the archive is useless.
    pub fn member(&mut self, key: &str, size: u64, body: impl Read) -> Result {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o444);
        header.set_mtime(1);
        header.set_entry_type(tar::EntryType::Regular);
        let mut body = Exact { inner: body, left: size };
        self.tar.append_data(&mut header, key, &mut body)?;
        match (body.left, body.inner.read(&mut [0])?) {
            (0, 0) => Ok(()),
            (0, _) => Err(Error::refused(format!("{key} is larger than {size} bytes"))),
            (left, _) => Err(Error::refused(format!("{key} is {left} bytes shorter than {size}"))),
        }
    }

    /// Writes a short member.
    ///
    /// # Errors
    /// What the output says.
    pub fn text(&mut self, key: &str, text: &str) -> Result {
        self.member(key, text.len() as u64, text.as_bytes())
    }

    /// Writes a narinfo and sends it on at once, so that the next stage can publish it.
    ///
    /// # Errors
    /// What the output and [`NarInfo::to_text`] say.
    pub fn narinfo(&mut self, narinfo: &NarInfo) -> Result {
        self.text(&narinfo.key(), &narinfo.to_text()?)?;
        self.flush()
    }

    /// Ends the archive and gives the output back.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(self) -> Result<W> {
        Ok(ManuallyDrop::into_inner(self.tar).into_inner()?)
    }

    /// Sends on what is buffered, so that a reader can work while the next member is made.
    ///
    /// # Errors
    /// What the output says.
    pub fn flush(&mut self) -> Result {
        Ok(self.tar.get_mut().flush()?)
    }
}

/// A body of which the size is known; `tar` would take one that ends early for a whole one.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buf[..most])?;
        if n == 0 && most > 0 {
            return Err(Error::refused(format!("it ends {} bytes too early", self.left)).into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// A member of a cache archive that is being read.
pub struct Member<'a> {
    /// Its key.
    pub key: String,
    /// What it is.
    pub object: Object,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes; an early end is an error.
    pub body: &'a mut dyn Read,
}

impl Member<'_> {
    /// The whole member as text of at most `limit` bytes.
    ///
    /// # Errors
    /// Refuses what is larger or not UTF-8.
    pub fn text(&mut self, limit: u64) -> Result<String> {
        nar_pack::stdio::read_text(&mut self.body, limit, &self.key)
    }

    /// Largest member of this kind that is text.
    #[must_use]
    pub fn text_limit(&self) -> u64 {
        match self.object {
            Object::CacheInfo => cache_info::MAX_SIZE,
            _ => narinfo::MAX_SIZE as u64,
        }
    }
}

/// Reads a cache archive and hands each member to `each`; directories are passed over, a leading `./` does not count.
///
/// # Errors
/// Refuses what is no tar, is cut off, or has a member that is no object of a binary cache; passes on what `each` says.
pub fn read<R: BufRead>(input: R, mut each: impl FnMut(Member<'_>) -> Result) -> Result {
    let mut archive = tar::Archive::new(Counted { inner: input, position: 0 });
    let mut end = 0;
    let mut long_name = None;
    // Raw: the library would read the headers that carry long names whole, however long they say they are.
    for entry in archive.entries().map_err(malformed)?.raw(true) {
        let mut entry = entry.map_err(malformed)?;
        let size = entry.size();
        let data_end = entry.raw_file_position().checked_add(size).and_then(|end| end.checked_next_multiple_of(512));
        end = data_end.ok_or_else(|| Error::refused("cache archive: a member of impossible size"))?;
        let kind = entry.header().entry_type();
        match extension(&mut entry, kind, size)? {
            Extension::None => {}
            Extension::Name(name) => {
                long_name = Some(name);
                continue;
            }
            Extension::Other => continue,
        }
        let key = match long_name.take() {
            Some(name) => key_of(&name)?,
            None => key_of(&entry.path_bytes())?,
        };
        match kind {
            tar::EntryType::Directory => continue,
            tar::EntryType::Regular | tar::EntryType::Continuous => {}
            _ => return Err(Error::refused(format!("cache archive: {key} is not a regular file"))),
        }
        let Some(object) = Object::of_key(&key) else {
            return Err(Error::refused(format!("cache archive: {key:?} is not an object of a binary cache")));
        };
        let mut body = Exact { inner: &mut entry, left: size };
        each(Member { key: key.clone(), object, size, body: &mut body }).context(|| format!("cache archive: {key}"))?;
        io::copy(&mut body, &mut io::sink()).context(|| format!("cache archive: {key}"))?;
    }
    let mut rest = archive.into_inner();
    // An archive ends in a block of zeros; without one it was cut off between two members.
    if rest.position < end + 512 {
        return Err(Error::refused("the cache archive is cut off: its end is missing"));
    }
    // What pads the archive is read too, lest the writer be told that nobody listens.
    let mut buffer = [0; 4096];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(()),
            n if buffer[..n].iter().all(|&byte| byte == 0) => {}
            _ => return Err(Error::refused("something follows the end of the cache archive")),
        }
    }
}

fn malformed(error: io::Error) -> Error {
    if is_of_input(&error) {
        error.into()
    } else {
        Error::refused(format!("malformed or cut off cache archive: {error}"))
    }
}

/// Whether a library only passes on what its input said, rather than finding fault with the data.
pub(crate) fn is_of_input(error: &io::Error) -> bool {
    let failure = error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>);
    failure || error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Interrupted
}

/// A header that only says something of the next member.
enum Extension {
    /// It is a member itself.
    None,
    /// The next member's name.
    Name(Vec<u8>),
    /// Something that does not matter.
    Other,
}

fn extension<R: Read>(entry: &mut tar::Entry<'_, R>, kind: tar::EntryType, size: u64) -> Result<Extension> {
    let named = kind.is_gnu_longname() || kind.is_pax_local_extensions();
    if !named && !kind.is_gnu_longlink() && !kind.is_pax_global_extensions() {
        return Ok(Extension::None);
    }
    if size > MAX_EXTENSION {
        return Err(Error::refused(format!("cache archive: an extended header of {size} bytes")));
    }
    let mut bytes = Vec::new();
    Exact { inner: entry, left: size }.read_to_end(&mut bytes).map_err(malformed)?;
    if kind.is_gnu_longname() {
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        return Ok(Extension::Name(bytes));
    }
    let mut name = None;
    for record in tar::PaxExtensions::new(&bytes).filter(|_| kind.is_pax_local_extensions()) {
        let record = record.map_err(malformed)?;
        match record.key_bytes() {
            b"path" => name = Some(record.value_bytes().to_vec()),
            b"size" => {
                return Err(Error::refused("cache archive: a size in an extended header; use tar --format=gnu"));
            }
            _ => {}
        }
    }
    Ok(name.map_or(Extension::Other, Extension::Name))
}

fn key_of(bytes: &[u8]) -> Result<String> {
    let wrong = || Error::refused(format!("cache archive: bad member name \"{}\"", bytes.escape_ascii()));
    let text = str::from_utf8(bytes).map_err(|_| wrong())?;
    let mut key = text;
    while let Some(rest) = key.strip_prefix("./") {
        key = rest;
    }
    let key = key.trim_end_matches('/');
    let plain = key.len() <= MAX_KEY
        && (matches!(key, "" | ".") || key.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !key.contains(|c: char| c.is_control());
    if plain { Ok(key.to_owned()) } else { Err(wrong()) }
}

struct Counted<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.position += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use tar::EntryType::{Directory, Link, Regular, Symlink};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.text("nix-cache-info", "StoreDir: /nix/store\n").unwrap();
        writer.text(&format!("log/{}.drv", "x".repeat(200)), "log").unwrap();
        writer.member("nar/x.nar", 1000, &[7_u8; 1000][..]).unwrap();
        writer.finish().unwrap()
    }

    fn keys(bytes: &[u8]) -> Result<Vec<(String, u64)>> {
        let mut keys = Vec::new();
        read(bytes, |member| {
            keys.push((member.key, member.size));
            Ok(())
        })?;
        Ok(keys)
    }

    #[test]
    fn members_come_back_in_their_order_with_long_names() {
        let keys = keys(&sample()).unwrap();
        assert_eq!(keys.len(), 3);
        assert_eq!((keys[0].0.as_str(), keys[1].0.len(), keys[2].1), ("nix-cache-info", 208, 1000));
    }

    #[test]
    fn an_archive_cut_off_anywhere_is_refused() {
        let bytes = sample();
        let end = bytes.len() - 1024;
        for cut in 0..=end {
            assert!(keys(&bytes[..cut]).unwrap_err().is_refusal(), "cut at {cut} of {end}");
        }
        assert!(keys(&[bytes, vec![0; 8192]].concat()).is_ok());
    }

    #[test]
    fn a_body_of_another_size_is_refused() {
        for body in [&b"12"[..], b"1234"] {
            let mut writer = Writer::new(Vec::new());
            assert!(writer.member("nar/x.nar", 3, body).unwrap_err().is_refusal());
        }
    }

    #[test]
    fn what_a_writer_left_unfinished_is_cut_off() {
        let mut out = Vec::new();
        {
            let mut writer = Writer::new(&mut out);
            writer.text("nix-cache-info", "StoreDir: /nix/store\n").unwrap();
        }
        assert!(keys(&out).unwrap_err().is_refusal());
    }

    #[test]
    fn strange_members_are_refused() {
        let one = |name: &str, kind: tar::EntryType| {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_cksum();
            [header.as_bytes().to_vec(), vec![0; 1024]].concat()
        };
        for name in ["../nix-cache-info", "/etc/passwd", "nar/../x", "readme", "x.narinfo"] {
            assert!(keys(&one(name, Regular)).unwrap_err().is_refusal(), "{name}");
        }
        for kind in [Link, Symlink] {
            assert!(keys(&one("nix-cache-info", kind)).unwrap_err().is_refusal());
        }
        assert_eq!(keys(&one("./", Directory)).unwrap(), []);
        assert_eq!(keys(&one("././nix-cache-info", Regular)).unwrap()[0].0, "nix-cache-info");
    }

    #[test]
    fn keys_tell_objects() {
        let digits = "0".repeat(32);
        let hash = HashPart::parse(digits.as_bytes()).unwrap();
        assert_eq!(Object::of_key(&format!("{digits}.narinfo")), Some(Object::Narinfo(hash)));
        assert_eq!(
            Object::of_key(&format!("nar/{}.nar.xz", Sha256::of(b"").base32())),
            Some(Object::Nar(Some(Sha256::of(b""))))
        );
        assert_eq!(Object::of_key("nar/x.nar"), Some(Object::Nar(None)));
        assert_eq!(Object::of_key("short.narinfo"), None);
    }
}
