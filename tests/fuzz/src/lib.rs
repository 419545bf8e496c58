//! Properties of each reader that hold for any input. They are checked by the fuzz targets in this directory and by
//! `tests/tests/it/formats/fuzz.rs`, which uses the corpus and mutations of it.
//!
//! A property is a function of bytes that panics if it does not hold. For most readers: refused input gets a message of
//! one line, and accepted input is the same after it is written and read again.

#![allow(clippy::unwrap_used, clippy::panic)] // a property that does not hold panics

pub mod corpus;

use std::io::{BufReader, Cursor, Read as _};
use std::path::Path;

use cache_policy::nix_conf::{ClientConfig, UrlForm};
use cache_sign::keys::{PublicKey, SecretKey};
use nar_pack::error::{Error, Result};
use nar_pack::export::{self, Trailer};
use nar_pack::nar::{Listing, ListingEntry, MAGIC, MAX_DEPTH, Skip, Visitor, list, padding, parse, push_string};
use nar_pack::path_info::parse_path_info;
use nar_pack::store_path::{HashPart, StoreDir, StorePath, read_path_list};
use narinfo_gen::archive::{self, Object};
use narinfo_gen::cache_info::CacheInfo;
use narinfo_gen::compression::{Compression, decode_content};
use narinfo_gen::content_address::{is_valid, to_base32};
use narinfo_gen::extras::{BuildTraceEntry, check_format, debuginfo_target};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::{NarInfo, TextWriter, read_text};
use narinfo_gen::verify_nar::{NarSizeLimit, digest_nar};
use serde_json::Value;

/// A property.
pub type Property = fn(&[u8]);

/// All properties by target name.
pub const TARGETS: [(&str, Property); 15] = [
    ("archive", archive),
    ("base32", base32),
    ("cache_info", cache_info),
    ("compressed", compressed),
    ("content_address", content_address),
    ("export_stream", export_stream),
    ("extras", extras),
    ("keys", keys),
    ("listing", listing),
    ("nar", nar),
    ("narinfo", narinfo),
    ("nix_conf", nix_conf),
    ("path_info", path_info),
    ("read_listing", read_listing),
    ("store_path", store_path),
];

/// Size limit in bytes for readers that take one.
const MAX_SIZE: usize = 1 << 20;

/// Asserts that the error of a reader is a refusal with a message of one line: in memory, no operation can fail.
fn refused(error: &Error) {
    assert!(error.is_refusal() && !error.message().is_empty(), "not a refusal: {error}");
    assert!(!error.to_string().contains('\n'), "more than one line: {error}");
}

fn store_dir() -> StoreDir {
    StoreDir::new("/nix/store").unwrap()
}

/// Writes a NAR again while it is read. The copy is identical if the reader accepts only canonical NARs.
#[derive(Default)]
struct Rewriter {
    nar: Vec<u8>,
    /// Names of the open entries, for the listing.
    names: Vec<Vec<u8>>,
    /// The path, the offset and the size of each file.
    files: Vec<(Vec<Vec<u8>>, u64, u64)>,
    /// Whether any name or target is not UTF-8.
    not_text: bool,
    /// The maximum number of open entries.
    deepest: usize,
    expected: u64,
}

impl Rewriter {
    fn strings(&mut self, strings: &[&[u8]]) {
        if self.nar.is_empty() {
            push_string(&mut self.nar, MAGIC);
        }
        for string in strings {
            push_string(&mut self.nar, string);
        }
    }
}

impl Visitor for Rewriter {
    fn directory(&mut self) -> Result {
        self.strings(&[b"(", b"type", b"directory"]);
        Ok(())
    }

    fn directory_end(&mut self) -> Result {
        self.strings(&[b")"]);
        Ok(())
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0));
        self.strings(&[b"entry", b"(", b"name", name, b"node"]);
        self.not_text |= str::from_utf8(name).is_err();
        self.names.push(name.to_vec());
        self.deepest = self.deepest.max(self.names.len());
        assert!(self.deepest <= MAX_DEPTH);
        Ok(())
    }

    fn leave(&mut self) -> Result {
        self.strings(&[b")"]);
        self.names.pop().unwrap();
        Ok(())
    }

    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result {
        self.strings(&[b"(", b"type", b"regular"]);
        if executable {
            self.strings(&[b"executable", b""]);
        }
        self.strings(&[b"contents"]);
        self.nar.extend(size.to_le_bytes());
        assert_eq!(offset, self.nar.len() as u64, "the offset of a file differs");
        self.files.push((self.names.clone(), offset, size));
        self.expected = offset.saturating_add(size);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result {
        assert!(!bytes.is_empty());
        self.nar.extend(bytes);
        assert!(self.nar.len() as u64 <= self.expected, "more bytes than the size of the file");
        Ok(())
    }

    fn file_end(&mut self) -> Result {
        assert_eq!(self.nar.len() as u64, self.expected, "fewer bytes than the size of the file");
        self.nar.resize(self.nar.len() + padding(self.expected), 0);
        self.strings(&[b")"]);
        Ok(())
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        assert!(!target.is_empty() && !target.contains(&0));
        self.not_text |= str::from_utf8(target).is_err();
        self.strings(&[b"(", b"type", b"symlink", b"target", target, b")"]);
        Ok(())
    }
}

/// An accepted NAR is identical after it is written again, regardless of how it arrives.
pub fn nar(bytes: &[u8]) {
    let (mut rewriter, mut input) = (Rewriter::default(), bytes);
    let verdict = parse(&mut input, &mut rewriter);
    match &verdict {
        Ok(size) => {
            assert_eq!(*size, (bytes.len() - input.len()) as u64, "its size differs");
            assert_eq!(rewriter.nar, bytes[..bytes.len() - input.len()], "it differs after it is written again");
        }
        Err(error) => refused(error),
    }
    for capacity in [1, 13] {
        let again = parse(&mut BufReader::with_capacity(capacity, bytes), &mut Skip);
        assert_eq!(again.ok(), verdict.clone().ok(), "the result differs if it is read in pieces of {capacity} bytes");
    }
}

/// A listing is JSON with the offset of each file. Every NAR whose names are UTF-8 has one.
pub fn listing(bytes: &[u8]) {
    let mut rewriter = Rewriter::default();
    let size = parse(&mut &*bytes, &mut rewriter);
    let mut out = Vec::new();
    match (list(&mut &*bytes, &mut out), size) {
        (Ok(listed), Ok(size)) => assert_eq!(listed, size),
        (Err(error), Ok(_)) => {
            assert!(rewriter.not_text, "{error}");
            return refused(&error);
        }
        (Err(error), Err(_)) => return refused(&error),
        (Ok(_), Err(error)) => panic!("a listing of an invalid NAR: {error}"),
    }
    let read = Listing::parse(&out, out.len()).unwrap();
    for (names, offset, size) in &rewriter.files {
        let found = read.find(&names.join(&b'/')).unwrap();
        let same = matches!(found, Some(ListingEntry::File { size: s, nar_offset: Some(o), .. }) if (s, o) == (*size, *offset));
        assert!(same, "{names:?}: {found:?}");
    }
    // Each directory has two levels of JSON, and serde_json has a limit of 128.
    if rewriter.deepest > 60 {
        return;
    }
    let json: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((json["version"].as_u64(), out.last()), (Some(1), Some(&b'\n')));
    for (names, offset, size) in rewriter.files {
        let node = names.iter().fold(&json["root"], |node, name| &node["entries"][str::from_utf8(name).unwrap()]);
        assert_eq!(
            (node["type"].as_str(), node["narOffset"].as_u64(), node["size"].as_u64()),
            (Some("regular"), Some(offset), Some(size)),
            "{names:?}"
        );
    }
}

/// An accepted listing has the same entry for each path as a JSON reader finds.
pub fn read_listing(bytes: &[u8]) {
    let listing = match Listing::parse(bytes, MAX_SIZE) {
        Ok(listing) => listing,
        Err(error) => return refused(&error),
    };
    // It may be nested deeper than the default limit of serde_json.
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return };
    let mut nodes = vec![(String::new(), &json["root"])];
    // Each lookup reads the whole listing.
    for _ in 0..100 {
        let Some((path, node)) = nodes.pop() else { return };
        let wanted = match node["type"].as_str().unwrap() {
            "directory" => ListingEntry::Directory,
            "symlink" => ListingEntry::Symlink { target: node["target"].as_str().unwrap().to_owned() },
            _ => ListingEntry::File {
                executable: node["executable"].as_bool().unwrap_or(false),
                size: node["size"].as_u64().unwrap(),
                nar_offset: node["narOffset"].as_u64(),
            },
        };
        match listing.find(path.as_bytes()) {
            Ok(found) => assert_eq!(found, Some(wanted), "{path:?}"),
            // A duplicate name, of which a JSON reader sees the last.
            Err(error) => refused(&error),
        }
        let entries = node["entries"].as_object().into_iter().flatten();
        nodes.extend(entries.map(|(name, entry)| (format!("{path}/{name}"), entry)));
    }
}

/// A path of an export stream: its NAR and its trailer.
type Exported = (Vec<u8>, Trailer);

/// An accepted export stream is the same after it is written and read again.
pub fn export_stream(bytes: &[u8]) {
    match read_export(bytes) {
        Ok(paths) => {
            let written = write_export(&paths);
            assert!(written.len() <= bytes.len(), "it is longer after it is written again");
            let again = read_export(&written).unwrap();
            assert!(again == paths, "it differs after it is written again");
        }
        Err(error) => refused(&error),
    }
}

fn read_export(mut input: &[u8]) -> Result<Vec<Exported>> {
    let mut paths = Vec::new();
    while export::read_marker(&mut input)? {
        let before = input;
        parse(&mut input, &mut Skip)?;
        let nar = before[..before.len() - input.len()].to_vec();
        paths.push((nar, export::read_trailer(&mut input, &store_dir())?));
    }
    Ok(paths)
}

fn write_export(paths: &[Exported]) -> Vec<u8> {
    let mut writer = export::Writer::new(Vec::new());
    for (nar, trailer) in paths {
        writer
            .write_path(&store_dir(), trailer, |out| {
                out.extend_from_slice(nar);
                Ok(())
            })
            .unwrap();
    }
    writer.finish().unwrap()
}

/// An accepted cache archive has the same members after it is written and read again.
pub fn archive(bytes: &[u8]) {
    match read_archive(bytes) {
        Ok(members) => {
            let mut writer = archive::Writer::new(Vec::new());
            for (key, body) in &members {
                writer.member(key, body.len() as u64, body.as_slice()).unwrap();
            }
            let written = writer.finish().unwrap();
            assert!(read_archive(&written).unwrap() == members, "it differs after it is written again");
        }
        Err(error) => refused(&error),
    }
}

fn read_archive(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut members = Vec::new();
    archive::read(bytes, |member| {
        let mut body = Vec::new();
        member.body.read_to_end(&mut body)?;
        assert_eq!(body.len() as u64, member.size);
        members.push((member.key, body));
        Ok(())
    })?;
    Ok(members)
}

/// An accepted narinfo is the same after it is written and read again, alone or among several.
pub fn narinfo(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        match NarInfo::parse(text, &store_dir()) {
            Ok(narinfo) => {
                let written = narinfo.to_text().unwrap();
                assert!(!written.contains(|c: char| c.is_control() && c != '\n'), "a control character in {written:?}");
                assert_eq!(NarInfo::parse(&written, &store_dir()).unwrap(), narinfo);
                assert_eq!(NarInfo::parse(&written, &store_dir()).unwrap().to_string(), written);
                assert!(!narinfo.fingerprint().contains('\n') && narinfo.key().ends_with(".narinfo"));
                assert!(!narinfo.url.starts_with('/') && narinfo.url.split('/').all(|part| part != ".."));
            }
            Err(error) => refused(&error),
        }
    }
    match read_narinfos(bytes) {
        Ok(narinfos) => {
            let mut writer = TextWriter::new(Vec::new());
            for (index, narinfo) in narinfos.iter().enumerate() {
                writer.write(narinfo, index + 1 < narinfos.len()).unwrap();
            }
            assert!(
                read_narinfos(&writer.into_inner()).unwrap() == narinfos,
                "they differ after they are written again"
            );
        }
        Err(error) => refused(&error),
    }
}

fn read_narinfos(bytes: &[u8]) -> Result<Vec<NarInfo>> {
    let mut narinfos = Vec::new();
    read_text(bytes, &store_dir(), |narinfo, _| {
        narinfos.push(narinfo);
        Ok(())
    })?;
    Ok(narinfos)
}

/// An accepted store path, store directory or path list is formatted as it was read.
pub fn store_path(bytes: &[u8]) {
    if let Some(hash) = HashPart::parse(bytes) {
        assert_eq!(hash.as_str().as_bytes(), bytes);
    }
    match read_path_list(BufReader::with_capacity(7, bytes), &store_dir()) {
        Ok(paths) => {
            let list: String = paths.iter().map(|path| store_dir().join(path) + "\n").collect();
            assert_eq!(read_path_list(list.as_bytes(), &store_dir()).unwrap(), paths);
        }
        Err(error) => refused(&error),
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (dir, base) = text.split_once('\n').unwrap_or(("/nix/store", text));
    match StorePath::from_base_name(base) {
        Ok(path) => {
            assert_eq!(path.base_name(), base);
            assert!(base.starts_with(path.hash_part().as_str()) && !base.contains(['/', '\0', '\n', ' ']));
            if let Ok(dir) = StoreDir::new(dir) {
                assert_eq!(dir.parse(&dir.join(&path)).unwrap(), path);
                assert_eq!(StoreDir::new(dir.as_str()).unwrap(), dir);
            }
        }
        Err(error) => refused(&error),
    }
}

/// A hash in any base equals the hash in our base.
pub fn base32(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Some(hash) = Sha256::from_base32(text) {
        assert_eq!(hash.base32(), text);
    }
    match Sha256::parse(text) {
        Ok(hash) => {
            assert_eq!(Sha256::parse(&hash.to_string()).unwrap(), hash);
            assert_eq!(Sha256::from_base32(&hash.base32()), Some(hash));
        }
        Err(error) => refused(&error),
    }
}

/// An accepted key is the same after it is formatted and read again, and no message contains a secret key.
pub fn keys(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match PublicKey::parse(text) {
        Ok(key) => {
            assert!(PublicKey::parse(&key.to_string()).unwrap() == key);
            assert!(!key.verifies("1;x", text));
        }
        Err(error) => refused(&error),
    }
    match SecretKey::parse(text) {
        Ok(key) => {
            let again = SecretKey::parse(&key.to_file_text()).unwrap();
            let signature = again.sign("1;x");
            assert!(key.public().verifies("1;x", &signature) && !key.public().verifies("1;y", &signature));
        }
        Err(error) => {
            refused(&error);
            let (name, digits) = text.split_once(':').unwrap_or(("", text));
            // Text that is not base 64 is not part of a key and may occur in the message.
            let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
            let secret =
                digits.trim().get(..16).filter(|secret| secret.bytes().all(is_digit) && !name.contains(secret));
            assert!(secret.is_none_or(|secret| !error.message().contains(secret)), "the message contains the key");
        }
    }
}

/// An accepted `nix-cache-info` is the same after it is written and read again.
pub fn cache_info(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match CacheInfo::parse(text) {
        Ok(info) => assert_eq!(CacheInfo::parse(&info.to_string()).unwrap(), info),
        Err(error) => refused(&error),
    }
}

/// A content address in any base equals the one in Nix's base 32.
pub fn content_address(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let converted = to_base32(text);
    assert_eq!(to_base32(&converted), converted);
    if is_valid(text) {
        assert!(is_valid(&converted), "{converted:?}");
    }
}

/// An object beside a path, whose key is the first line, is refused or not. An accepted build trace entry is the same if its
/// fields come in another order, and a link to debug information leads to the same NAR after it is written again.
pub fn extras(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (Ok(key), body) = (str::from_utf8(&bytes[..end]), &bytes[end + 1..]) else { return };
    let Some(object) = Object::of_key(key) else { return };
    if let Err(error) = check_format(object, key, body, &store_dir()) {
        refused(&error);
    }
    if let Some(target) = debuginfo_target(body) {
        let link = serde_json::json!({ "member": "x", "archive": format!("../{target}") });
        assert_eq!(debuginfo_target(link.to_string().as_bytes()), Some(target));
    }
    match BuildTraceEntry::parse(key, body, &store_dir()) {
        Ok(entry) => {
            let mut sorted: Value = serde_json::from_slice(body).unwrap();
            sorted.sort_all_objects();
            assert_eq!(BuildTraceEntry::parse(key, sorted.to_string().as_bytes(), &store_dir()).unwrap(), entry);
            assert!(!entry.fingerprint.contains('\n'));
        }
        Err(error) => refused(&error),
    }
}

/// The output of `nix path-info --json` is refused, or read in the same way after it is written again.
pub fn path_info(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match parse_path_info(text, &store_dir()) {
        Ok(infos) => {
            let written = serde_json::from_str::<Value>(text).unwrap().to_string();
            assert_eq!(parse_path_info(&written, &store_dir()).unwrap(), infos);
        }
        Err(error) => refused(&error),
    }
}

/// A file in any compression, chosen by the first byte, is decompressed to at most 1 MiB or refused.
pub fn compressed(bytes: &[u8]) {
    let max_size = MAX_SIZE as u64;
    let Some((&first, file)) = bytes.split_first() else { return };
    let method = Compression::ALL[usize::from(first) % Compression::ALL.len()];
    let mut rewriter = Rewriter::default();
    match digest_nar(Cursor::new(file), method, &NarSizeLimit::new(max_size), &mut rewriter) {
        Ok(digests) => {
            assert!(rewriter.nar.len() <= MAX_SIZE);
            assert_eq!((digests.file_hash, digests.file_size), (Sha256::of(file), file.len() as u64));
            assert_eq!(digests.nar, Some((Sha256::of(&rewriter.nar), rewriter.nar.len() as u64)));
        }
        Err(error) => refused(&error),
    }
    match decode_content(file.to_vec(), Some(method.name()), 4096) {
        Ok(decoded) => assert!(decoded.len() <= 4096),
        Err(error) => refused(&error),
    }
}

/// Settings merged into a nix.conf take effect, are unchanged when merged again, and can be removed.
pub fn nix_conf(bytes: &[u8]) {
    // Included files are not part of this input.
    if bytes.windows(7).any(|window| window == b"include") {
        return;
    }
    let key = PublicKey::parse("a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=").unwrap();
    let path = Path::new("/nowhere/nix.conf");
    for only in [false, true] {
        let client =
            ClientConfig::new("https://a.example", &UrlForm::Portable, std::slice::from_ref(&key), only).unwrap();
        let (merged, rest) = match (client.merge(bytes, path), client.without_lines(bytes)) {
            (Ok(merged), Ok(rest)) => (merged, rest),
            (Err(error), _) => {
                refused(&error);
                continue;
            }
            (Ok(_), Err(error)) => panic!("merged lines cannot be removed: {error}"),
        };
        assert_eq!(client.merge(&merged, path).unwrap(), merged, "it differs after it is merged again");
        assert_eq!(client.without_lines(&merged).unwrap(), rest, "other lines changed");
        let text = String::from_utf8_lossy(&merged);
        assert!(text.to_lowercase().contains("//a.example") && text.contains(&key.to_string()), "it has no effect");
    }
}
