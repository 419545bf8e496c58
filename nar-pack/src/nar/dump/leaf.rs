//! Reads a file or symbolic link of a tree into the NAR, and detects that a file changes while it is read.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::pack_error;
use super::walk::reserve;
use crate::error::{Error, Result};
use crate::nar::open_dir::{Parent, fd_of, path_of};
use crate::nar::{MAX_TARGET, padding, push_string};

/// Minimum free space in the buffer before a read, in bytes: every symbolic link and most files fit.
const MIN_READ_SPACE: usize = 64 * 1024;
/// Upper bound of the bytes that follow the contents of a file: padding and closing parentheses.
const MAX_FILE_END: usize = 64;
/// Seconds by which the time of a change may be too early: some file systems have coarse timestamps, and a file server
/// has its own clock.
const MAX_CLOCK_SKEW_SECS: i64 = 10;

/// A node of the tree that is not a directory.
pub(super) struct Leaf {
    pub(super) parent: Parent,
    pub(super) name: CString,
    pub(super) kind: FileType,
}

impl Leaf {
    fn error(&self, reason: impl std::fmt::Display) -> Error {
        pack_error(&path_of(&self.parent, self.name.as_bytes()), reason)
    }

    fn errno(&self, error: Errno) -> Error {
        self.error(std::io::Error::from(error))
    }

    /// Appends the node to `buf`. `flush` is called when the buffer is full, and must empty it.
    pub(super) fn read(&self, buf: &mut Vec<u8>, flush: &mut impl FnMut(&mut Vec<u8>) -> Result) -> Result {
        reserve(buf, MIN_READ_SPACE, flush)?;
        match self.kind {
            FileType::RegularFile => self.read_regular(buf, flush)?,
            FileType::Symlink => self.read_symlink(buf)?,
            FileType::Fifo => return Err(self.error("a NAR cannot contain a FIFO")),
            FileType::Socket => return Err(self.error("a NAR cannot contain a socket")),
            FileType::BlockDevice | FileType::CharacterDevice => {
                return Err(self.error("a NAR cannot contain a device"));
            }
            _ => return Err(self.error("a NAR cannot contain a file of this type")),
        }
        push_string(buf, b")");
        Ok(())
    }

    /// Reads before it calls `fstat`: one call of each is enough for a file that fits in the buffer and was not changed
    /// recently, as nearly all are. Any other file is read between two `fstat` calls.
    fn read_regular(&self, buf: &mut Vec<u8>, flush: &mut impl FnMut(&mut Vec<u8>) -> Result) -> Result {
        // NONBLOCK: if a FIFO has replaced the file, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(fd_of(&self.parent), &self.name, flags, Mode::empty())
            .map_err(|error| self.errno(error))?;
        for string in [b"(".as_slice(), b"type", b"regular"] {
            push_string(buf, string);
        }
        let header = buf.len();
        push_string(buf, b"contents");
        buf.extend_from_slice(&[0; 8]);
        let opened_at = clock_gettime(ClockId::RealtimeCoarse);
        let read = self.read_once(&fd, buf);
        let stat = rustix::fs::fstat(&fd).map_err(|error| self.errno(error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.error("the file type changed while it was read"));
        }
        let size = u64::try_from(stat.st_size).map_err(|_| self.error("negative file size"))?;
        let read = read?;
        let contents = buf.len() - read;
        buf[contents - 8..contents].copy_from_slice(&size.to_le_bytes());
        let remaining = if stat.st_ctime < opened_at.tv_sec - MAX_CLOCK_SKEW_SECS {
            size.checked_sub(read as u64).ok_or_else(|| self.became_shorter())?
        } else {
            buf.truncate(contents);
            rustix::fs::seek(&fd, SeekFrom::Start(0)).map_err(|error| self.errno(error))?;
            size
        };
        // Nix checks only the owner's execute bit.
        if stat.st_mode & 0o100 != 0 {
            let moved = buf.split_off(header);
            push_string(buf, b"executable");
            push_string(buf, b"");
            reserve(buf, moved.len(), flush)?;
            buf.extend_from_slice(&moved);
        }
        if remaining > 0 {
            self.read_remaining(&fd, &stat, remaining, buf, flush)?;
        }
        reserve(buf, MAX_FILE_END, flush)?;
        buf.resize(buf.len() + padding(size), 0);
        Ok(())
    }

    /// Reads the remaining bytes of the file and checks that it has not changed since `stat`.
    fn read_remaining(
        &self,
        fd: &OwnedFd,
        stat: &Stat,
        mut remaining: u64,
        buf: &mut Vec<u8>,
        flush: &mut impl FnMut(&mut Vec<u8>) -> Result,
    ) -> Result {
        while remaining > 0 {
            reserve(buf, MIN_READ_SPACE, flush)?;
            let read = self.read_once(fd, buf)? as u64;
            if read == 0 {
                return Err(self.became_shorter());
            }
            remaining = remaining.checked_sub(read).ok_or_else(|| self.error("the file grew while it was read"))?;
        }
        let now = rustix::fs::fstat(fd).map_err(|error| self.errno(error))?;
        let version =
            |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
        if version(&now) == version(stat) { Ok(()) } else { Err(self.error("the file changed while it was read")) }
    }

    fn became_shorter(&self) -> Error {
        self.error("the file became shorter while it was read")
    }

    /// Reads once, at most the free space of the buffer; returns 0 at the end of the file.
    fn read_once(&self, fd: &OwnedFd, buf: &mut Vec<u8>) -> Result<usize> {
        loop {
            match rustix::io::read(fd, spare_capacity(buf)) {
                Ok(read) => return Ok(read),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.errno(error)),
            }
        }
    }

    fn read_symlink(&self, buf: &mut Vec<u8>) -> Result {
        let target =
            rustix::fs::readlinkat(fd_of(&self.parent), &self.name, Vec::new()).map_err(|error| self.errno(error))?;
        if target.as_bytes().len() > MAX_TARGET {
            return Err(self.error(format_args!("the link target is longer than {MAX_TARGET} bytes")));
        }
        for string in [b"(".as_slice(), b"type", b"symlink", b"target", target.as_bytes()] {
            push_string(buf, string);
        }
        Ok(())
    }
}
