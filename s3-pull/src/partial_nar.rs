//! The compressed NARs of interrupted downloads, next to the paths of a root. A large NAR is copied to
//! `.s3-pull-partial-<FileHash>` while it is downloaded, so a pull that was killed can continue it. The file is removed
//! when the path has been unpacked or refused, and by a later pull if it has not been resumed for a week.
//!
//! Nothing in such a file is trusted: the NAR is verified from its first byte, as any other.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nar_pack::error::{Context, Error, Result};
use nar_pack::regular_file;
use nar_pack::root_dir::OpenDir;
use narinfo_gen::narinfo::NarInfo;
use rustix::fs::{AtFlags, FlockOperation, OFlags, flock, fstatvfs, unlinkat};
use s3_push::remote::chunks::ChunkReader;
use s3_push::remote::transfer::{MIN_RANGED_SIZE, ResumePoint};

/// The beginning of the name; the FileHash follows.
pub const PREFIX: &str = ".s3-pull-partial-";
/// The age after which a file that has not been resumed is removed.
const MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// Bytes in front of the NAR: the entity tag and a line feed, padded with zeros.
const HEADER_SIZE: usize = 1024;

/// The open and locked file of an interrupted or current download.
pub struct PartialNar {
    store: Arc<OpenDir>,
    name: String,
    file: File,
}

impl PartialNar {
    /// Opens the file of a NAR, and creates it if necessary. Returns none if the NAR is small or has no FileHash, if
    /// another process or user downloads it, or if the file system does not have enough space for this copy beside the
    /// unpacked files.
    ///
    /// # Errors
    /// Fails if something other than such a file has its name, or if it cannot be created.
    pub fn open(store: &Arc<OpenDir>, narinfo: &NarInfo) -> Result<Option<Self>> {
        let (Some(hash), Some(MIN_RANGED_SIZE..)) = (narinfo.file_hash, narinfo.file_size) else { return Ok(None) };
        let name = format!("{PREFIX}{}", hash.base32());
        let path = store.path().join(&name);
        let failed = |error: Error| {
            let hint = format!("remove {}", path.display());
            Error::failed(format!("cannot continue the download in {}: {error}", path.display())).with_hint(hint)
        };
        let file = match regular_file::open_at(&**store, &name, OFlags::RDWR | OFlags::CREATE) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let metadata = file.metadata().context(|| path.display())?;
        match metadata.nlink() {
            1 => {}
            // The download that had the lock has just ended.
            0 => return Ok(None),
            _ => return Err(failed(Error::failed("it has several hard links"))),
        }
        let partial = Self { store: Arc::clone(store), name, file };
        let missing_size = narinfo.file_size.unwrap_or_default().saturating_sub(metadata.len());
        if partial.has_space(missing_size.saturating_add(narinfo.nar_size)) {
            return Ok(Some(partial));
        }
        partial.remove();
        Ok(None)
    }

    /// Returns whether the file system has `size` bytes of free space, as far as is known.
    fn has_space(&self, size: u64) -> bool {
        fstatvfs(&self.file).map_or(true, |stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= size)
    }

    /// Returns where to continue, if there is anything to continue. Unreadable and foreign contents are ignored.
    #[must_use]
    pub fn resume_point(&self) -> Option<ResumePoint> {
        let mut header = [0; HEADER_SIZE];
        self.file.read_exact_at(&mut header, 0).ok()?;
        let etag = header.split(|&byte| byte == b'\n').next()?;
        // Only visible characters: it becomes the value of a header.
        let is_valid = etag.starts_with(b"\"") && etag.ends_with(b"\"") && etag.iter().all(u8::is_ascii_graphic);
        let etag = str::from_utf8(etag).ok().filter(|_| is_valid)?.to_owned();
        let position = self.file.metadata().ok()?.len().checked_sub(HEADER_SIZE as u64).filter(|length| *length > 0)?;
        Some(ResumePoint { position, etag })
    }

    /// Empties the file, for a download from the beginning. Without an entity tag it cannot be continued later.
    fn restart(&self, etag: Option<&str>) -> io::Result<bool> {
        self.file.set_len(0)?;
        let Some(etag) = etag.filter(|etag| etag.len() < HEADER_SIZE) else { return Ok(false) };
        let mut header = format!("{etag}\n").into_bytes();
        header.resize(HEADER_SIZE, 0);
        self.file.write_all_at(&header, 0)?;
        Ok(true)
    }

    /// Removes the file.
    pub fn remove(&self) {
        // What cannot be removed now is removed by a later pull.
        let _ = unlinkat(&*self.store, &self.name, AtFlags::empty());
    }

    /// Empties the file.
    pub fn clear(&self) {
        let _ = self.file.set_len(0);
    }
}

/// Removes the files that have not been resumed for a week.
pub fn remove_abandoned(store: &OpenDir, names: &[String]) {
    for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
        let Ok(file) = regular_file::open_at(store, name, OFlags::RDONLY) else { continue };
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        let is_locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
        if age.is_some_and(|age| age > MAX_AGE) && !is_locked {
            let _ = unlinkat(store, name, AtFlags::empty());
        }
    }
}

/// Reads a NAR: first the bytes of an earlier download, then those that arrive, which it also writes to the file.
pub struct PartialReader {
    partial: Arc<PartialNar>,
    /// The end of the bytes of the earlier download.
    resumed_at: u64,
    position: u64,
    /// The rest of the NAR; none if the earlier download was complete.
    rest: Option<ChunkReader>,
    /// Whether the bytes that arrive are written to the file.
    is_kept: bool,
}

impl PartialReader {
    /// Continues an earlier download.
    #[must_use]
    pub fn resumed(partial: Arc<PartialNar>, from: &ResumePoint, rest: Option<ChunkReader>) -> Self {
        Self { partial, resumed_at: from.position, position: 0, rest, is_kept: true }
    }

    /// Starts a download.
    #[must_use]
    pub fn started(partial: Arc<PartialNar>, etag: Option<&str>, body: ChunkReader) -> Self {
        let is_kept = partial.restart(etag).unwrap_or(false);
        Self { partial, resumed_at: 0, position: 0, rest: Some(body), is_kept }
    }
}

impl Read for PartialReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let kept = self.resumed_at.saturating_sub(self.position);
        let offset = HEADER_SIZE as u64 + self.position;
        let n = if kept > 0 {
            let limit = buf.len().min(usize::try_from(kept).unwrap_or(usize::MAX));
            let n = self.partial.file.read_at(&mut buf[..limit], offset)?;
            if n == 0 && limit > 0 {
                return Err(Error::refused("the NAR is truncated").into());
            }
            n
        } else {
            let Some(rest) = &mut self.rest else { return Ok(0) };
            let n = rest.read(buf)?;
            // If the disk is full, the download continues without the copy.
            if self.is_kept && self.partial.file.write_all_at(&buf[..n], offset).is_err() {
                self.partial.clear();
                self.is_kept = false;
            }
            n
        };
        self.position += n as u64;
        Ok(n)
    }
}
