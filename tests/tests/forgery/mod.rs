//! What a liar with a key that somebody trusts can make: store paths of any bytes, signed narinfos that say anything.

#![allow(dead_code)] // each test file takes a part of it

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use cache_sign::keys::SecretKey;
use cache_tests::lying_server::Objects;
use cache_tests::store_path;
use nar_pack::nar::{MAGIC, dump, push_string};
use nar_pack::store_path::{StoreDir, StorePath};
use narinfo_gen::compression::{Compression, Encoder, FRAME, Settings};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::NarInfo;

/// A key, and all that it signs.
pub struct Forger {
    key: SecretKey,
}

/// A store path as a cache has it. It is consistent until somebody changes it.
#[derive(Debug, Clone)]
pub struct Forged {
    /// Its narinfo.
    pub narinfo: NarInfo,
    /// Its NAR.
    pub nar: Vec<u8>,
    /// Its NAR as it is stored.
    pub file: Vec<u8>,
}

impl Forger {
    /// One with a fresh key.
    pub fn new() -> Self {
        Self { key: SecretKey::generate("forger-1").unwrap() }
    }

    /// The key, as a client that trusts it has it.
    pub fn public(&self) -> String {
        self.key.public().to_string()
    }

    /// A store path of that name with these bytes as its NAR, and what it refers to.
    pub fn path(&self, name: &str, nar: Vec<u8>, method: Compression, references: &[&Forged]) -> Forged {
        let file = compressed(method, &nar);
        self.stored(name, nar, file, method.name(), references)
    }

    /// As [`Forger::path`], with the NAR stored as `file`.
    pub fn stored(&self, name: &str, nar: Vec<u8>, file: Vec<u8>, method: &str, references: &[&Forged]) -> Forged {
        let path = store_dir().parse(&store_path(name, 1)).unwrap();
        let mut references: Vec<StorePath> = references.iter().map(|other| other.narinfo.path.clone()).collect();
        references.sort_unstable();
        let file_hash = Sha256::of(&file);
        let narinfo = NarInfo {
            store_dir: store_dir(),
            path,
            url: format!("nar/{}.nar", file_hash.base32()),
            compression: method.to_owned(),
            file_hash: Some(file_hash),
            file_size: Some(file.len() as u64),
            nar_hash: Sha256::of(&nar),
            nar_size: nar.len() as u64,
            references,
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            unknown: Vec::new(),
        };
        self.signed(Forged { narinfo, nar, file })
    }

    /// The same path, with a signature over what its narinfo says now and no other.
    pub fn signed(&self, mut forged: Forged) -> Forged {
        forged.narinfo.signatures = vec![self.key.sign(&forged.narinfo.fingerprint())];
        forged
    }
}

impl Forged {
    /// The same path with something changed in its narinfo, of which the signature knows nothing.
    pub fn but(mut self, change: impl FnOnce(&mut NarInfo)) -> Self {
        change(&mut self.narinfo);
        self
    }

    /// The same path, stored as these bytes, with a FileHash and FileSize that fit: nobody signs those.
    pub fn filed(mut self, url: String, file: Vec<u8>) -> Self {
        self.narinfo.url = url;
        self.narinfo.file_hash = Some(Sha256::of(&file));
        self.narinfo.file_size = Some(file.len() as u64);
        self.file = file;
        self
    }

    /// The full store path.
    pub fn full_path(&self) -> String {
        self.narinfo.full_path()
    }

    /// Its objects.
    pub fn objects(&self) -> Objects {
        Objects::from([
            (self.narinfo.key(), self.narinfo.to_string().into_bytes()),
            (self.narinfo.url.clone(), self.file.clone()),
        ])
    }

    /// Whether exactly this path lies below `root`; panics where something else has its name.
    #[track_caller]
    pub fn lies_below(&self, root: &Path) -> bool {
        let place = store_dir().real_path(Some(root), &self.narinfo.path);
        if place.symlink_metadata().is_err() {
            return false;
        }
        let mut nar = Vec::new();
        dump(&place, &mut nar, &mut |_| {}).unwrap();
        assert!(nar == self.nar, "{} is not what was signed", place.display());
        true
    }
}

/// `/nix/store`.
pub fn store_dir() -> StoreDir {
    StoreDir::new("/nix/store").unwrap()
}

/// The objects of several paths, and a `nix-cache-info`.
pub fn objects<'a>(paths: impl IntoIterator<Item = &'a Forged>) -> Objects {
    let mut all = Objects::from([("nix-cache-info".to_owned(), b"StoreDir: /nix/store\n".to_vec())]);
    for forged in paths {
        all.extend(forged.objects());
    }
    all
}

/// The names of everything in the store below `root`.
pub fn visible(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(store_dir().real_dir(Some(root))).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// A NAR of these strings, whatever they are.
pub fn nar_of(strings: &[&[u8]]) -> Vec<u8> {
    let mut nar = Vec::new();
    push_string(&mut nar, MAGIC);
    for string in strings {
        push_string(&mut nar, string);
    }
    nar
}

/// The NAR of a file.
pub fn file_nar(contents: &[u8]) -> Vec<u8> {
    nar_of(&[b"(", b"type", b"regular", b"contents", contents, b")"])
}

/// The strings of a directory with these entries, each with the strings of its node.
pub fn directory<'a>(entries: &[(&'a [u8], Vec<&'a [u8]>)]) -> Vec<&'a [u8]> {
    let mut strings: Vec<&[u8]> = vec![b"(", b"type", b"directory"];
    for (name, node) in entries {
        strings.extend([b"entry".as_slice(), b"(", b"name", name, b"node"]);
        strings.extend(node);
        strings.push(b")");
    }
    strings.push(b")");
    strings
}

/// The strings of a symbolic link.
pub fn link(target: &[u8]) -> Vec<&[u8]> {
    vec![b"(", b"type", b"symlink", b"target", target, b")"]
}

/// The strings of a file.
pub fn file(contents: &[u8]) -> Vec<&[u8]> {
    vec![b"(", b"type", b"regular", b"contents", contents, b")"]
}

/// The NAR of a small tree with some of everything; others of the same length for other letters.
pub fn small_nar(letter: u8) -> Vec<u8> {
    let text = [letter; 40];
    let program: Vec<&[u8]> = vec![b"(", b"type", b"regular", b"executable", b"", b"contents", b"#!/bin/sh\n", b")"];
    nar_of(&directory(&[
        (b"bin", directory(&[(b"run", program)])),
        (b"link", link(b"bin/run")),
        (b"text", file(&text)),
    ]))
}

/// A NAR of directories within each other: `depth` of them.
pub fn nested_nar(depth: usize) -> Vec<u8> {
    let mut strings: Vec<&[u8]> = Vec::new();
    for _ in 1..depth {
        strings.extend([b"(".as_slice(), b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]);
    }
    strings.extend([b"(".as_slice(), b"type", b"directory", b")"]);
    for _ in 1..depth {
        strings.extend([b")".as_slice(), b")"]);
    }
    nar_of(&strings)
}

/// Bytes as a cache stores them.
pub fn compressed(method: Compression, bytes: &[u8]) -> Vec<u8> {
    match method {
        Compression::Lzip => return lzip(bytes),
        Compression::Lz4 => return lz4(bytes),
        _ => {}
    }
    let level = if method == Compression::None { None } else { Some(1) };
    let mut encoder = Encoder::new(&Settings::new(method, level, Some(1)).unwrap(), Vec::new()).unwrap();
    for piece in bytes.chunks(FRAME) {
        encoder.push(&Arc::new(piece.to_vec())).unwrap();
    }
    encoder.finish().unwrap()
}

/// An lz4 frame with its checksum, which nothing here writes.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A member of the lzip format (its manual, "File format"), which nothing here writes: an LZMA stream with another head
/// and the sums at its end.
fn lzip(bytes: &[u8]) -> Vec<u8> {
    const LZMA_HEAD: usize = 13;
    let options = xz2::stream::LzmaOptions::new_preset(1).unwrap();
    let stream = xz2::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut encoder = xz2::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(bytes).unwrap();
    let lzma = encoder.finish().unwrap();
    // 2^20: the dictionary of level 1.
    let mut member = [b"LZIP\x01\x14", &lzma[LZMA_HEAD..]].concat();
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    member.extend(sum.sum().to_le_bytes());
    member.extend((bytes.len() as u64).to_le_bytes());
    let size = member.len() as u64 + 8;
    member.extend(size.to_le_bytes());
    member
}
