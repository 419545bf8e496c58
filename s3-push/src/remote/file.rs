//! Caches in a local directory (`file://`), for reading.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nar_pack::error::{Context, Error, Result};
use nar_pack::regular_file;
use nar_pack::store_path::HashPart;
use narinfo_gen::archive::Object;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;

use crate::remote::chunks::{Chunk, Plain};
use crate::remote::transfer::ByteRange;

/// Bytes of a file in one chunk.
const CHUNK_SIZE: usize = 64 << 10;

/// A cache in a directory.
pub struct Directory {
    path: PathBuf,
}

/// A part of an open file, or all of it, and its size in bytes.
pub(super) type OpenFile = (Take<File>, u64);

impl Directory {
    /// Opens the directory of a `file://` URL, given without the scheme. Parameters after a `?` are ignored: they
    /// concern Nix only.
    ///
    /// # Errors
    /// Fails if the directory does not exist.
    pub fn open(path: &str) -> Result<Self> {
        let path = path.split('?').next().unwrap_or_default();
        let path = PathBuf::from(percent_decode_str(path).decode_utf8_lossy().into_owned());
        if !path.is_dir() {
            return Err(Error::failed(format!("cannot read {}: no such directory", path.display())));
        }
        Ok(Self { path })
    }

    /// Returns the path of an object, for messages; that of the cache for an empty key.
    #[must_use]
    pub fn display_url(&self, key: &str) -> String {
        self.path.join(key).display().to_string()
    }

    /// Opens an object. Returns none if it does not exist or is too short for the range.
    pub(super) async fn open_object(&self, key: &str, range: ByteRange) -> Result<Option<OpenFile>> {
        let path = self.path.join(key);
        blocking(move || open_range(&path, range)).await
    }

    /// Reads an object, or its first `max_size + 1` bytes. Returns none if it does not exist.
    pub(super) async fn read(&self, key: &str, max_size: usize) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(key);
        blocking(move || {
            let Some((file, _)) = open_file(&path)? else { return Ok(None) };
            let mut bytes = Vec::new();
            let read = file.take(max_size as u64 + 1).read_to_end(&mut bytes);
            read.map_err(|error| reading(&path, &error))?;
            Ok(Some(bytes))
        })
        .await
    }

    /// Returns the hash parts of all narinfos, sorted.
    pub(super) async fn list_hash_parts(&self) -> Result<Vec<HashPart>> {
        let path = self.path.clone();
        blocking(move || {
            let listing = || format!("cannot list {}", path.display());
            let mut hashes = Vec::new();
            for entry in std::fs::read_dir(&path).context(listing)? {
                let name = entry.context(listing)?.file_name();
                if let Some(Object::Narinfo(hash)) = name.to_str().and_then(Object::of_key) {
                    hashes.push(hash);
                }
            }
            hashes.sort_unstable();
            Ok(hashes)
        })
        .await
    }
    /// Returns all keys that begin with `prefix`, which ends with a slash; sorted.
    pub(super) async fn list_keys(&self, prefix: &str) -> Result<Vec<String>> {
        let (path, prefix) = (self.path.clone(), prefix.to_owned());
        blocking(move || {
            let (mut keys, mut directories) = (Vec::new(), vec![prefix]);
            while let Some(directory) = directories.pop() {
                let listing = || format!("cannot list {}", path.join(&directory).display());
                let entries = match std::fs::read_dir(path.join(&directory)) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error).context(listing),
                };
                for entry in entries {
                    let entry = entry.context(listing)?;
                    // A name that is not text is not that of an object.
                    let Ok(name) = entry.file_name().into_string() else { continue };
                    // A symbolic link to a directory is not followed: it may lead back here.
                    if entry.file_type().context(listing)?.is_dir() {
                        directories.push(format!("{directory}{name}/"));
                    } else {
                        keys.push(format!("{directory}{name}"));
                    }
                }
            }
            keys.sort_unstable();
            Ok(keys)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|_| Err(Error::panicked("file reading thread")))
}

fn reading(path: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!("cannot read {}: {error}", path.display()))
}

fn open_file(path: &Path) -> Result<Option<(File, u64)>> {
    match regular_file::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len()))) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from(error).context(format!("cannot read {}", path.display()))),
    }
}

fn open_range(path: &Path, range: ByteRange) -> Result<Option<OpenFile>> {
    let Some((mut file, size)) = open_file(path)? else { return Ok(None) };
    let end = range.end.unwrap_or(u64::MAX);
    if range.end.is_some_and(|end| end > size) {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(range.start)).map_err(|error| reading(path, &error))?;
    Ok(Some((file.take(end - range.start), size)))
}

/// Sends a file into `chunks`; for threads that may block. `count` is called with the length of each chunk.
pub(super) fn send_file(
    mut file: impl Read,
    display_path: &str,
    chunks: &mpsc::Sender<Result<Chunk>>,
    count: impl Fn(usize),
) {
    loop {
        let mut bytes = Vec::with_capacity(CHUNK_SIZE);
        let chunk = match (&mut file).take(CHUNK_SIZE as u64).read_to_end(&mut bytes) {
            Ok(0) => Ok(Chunk::End),
            Ok(length) => {
                count(length);
                Ok(Chunk::Data(Plain(Bytes::from(bytes))))
            }
            Err(error) => Err(Error::failed(format!("cannot read {display_path}: {error}"))),
        };
        let is_last = !matches!(chunk, Ok(Chunk::Data(_)));
        if chunks.blocking_send(chunk).is_err() || is_last {
            return;
        }
    }
}
