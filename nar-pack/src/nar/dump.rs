//! A file tree to a NAR.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{CASE_HACK, MAX_DEPTH, MAX_TARGET, padding, push_string};
use crate::stage::{Failure, Outcome};

/// Files up to this many bytes are read in one call.
const CHUNK: usize = 256 * 1024;

/// Writes `path` as a NAR, byte for byte as `nix-store --dump` does; `warn` is told of names that some readers refuse.
///
/// Files are read, never mapped: breakpoints that tracing tools set leak into mappings.
///
/// # Errors
/// Fails with the path of what cannot be read, of what is neither file, directory nor symbolic link, and of a file
/// that changes its size while it is read.
pub fn dump(path: &Path, out: &mut impl Write, warn: &mut impl FnMut(&str)) -> Outcome {
    let mut packer =
        Packer { out, warn, path: path.to_owned(), fields: Vec::with_capacity(4096), chunk: vec![0; CHUNK], depth: 0 };
    push_string(&mut packer.fields, super::MAGIC);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| packer.failed("the path contains a NUL byte"))?;
    packer.node(CWD, &name, FileType::Unknown)?;
    packer.flush_fields()
}

struct Packer<'a, W, F> {
    out: &'a mut W,
    warn: &'a mut F,
    /// Of the node at hand, for messages.
    path: PathBuf,
    /// Archive strings not yet written.
    fields: Vec<u8>,
    chunk: Vec<u8>,
    depth: usize,
}

struct Entry {
    name: CString,
    kind: FileType,
}

impl<W: Write, F: FnMut(&str)> Packer<'_, W, F> {
    fn failed(&self, why: impl std::fmt::Display) -> Failure {
        Failure::failed(format!("packing {}: {why}", self.path.display()))
    }

    fn field(&mut self, string: &[u8]) {
        push_string(&mut self.fields, string);
    }

    fn flush_fields(&mut self) -> Outcome {
        self.out.write_all(&self.fields)?;
        self.fields.clear();
        Ok(())
    }

    /// `kind` comes from the directory where it knows; then a file or directory is opened without asking first.
    fn node(&mut self, parent: BorrowedFd<'_>, name: &CString, kind: FileType) -> Outcome {
        if self.depth == MAX_DEPTH {
            return Err(self.failed(format_args!("nested deeper than {MAX_DEPTH} levels of directories")));
        }
        self.field(b"(");
        self.field(b"type");
        match kind {
            FileType::RegularFile | FileType::Directory => {
                let (fd, stat) = self.open(parent, name)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => self.regular(fd, &stat)?,
                    FileType::Directory => self.directory(&fd)?,
                    _ => return Err(self.failed("it changed its type while it was read")),
                }
            }
            FileType::Symlink => self.symlink(parent, name)?,
            FileType::Unknown => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| self.failed(std::io::Error::from(error)))?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                self.fields.truncate(self.fields.len() - TYPE_FIELDS);
                return match kind {
                    FileType::Unknown => Err(self.failed("unknown file type")),
                    kind => self.node(parent, name, kind),
                };
            }
            other => return Err(self.failed(format_args!("{} cannot be in a NAR", kind_name(other)))),
        }
        self.field(b")");
        Ok(())
    }

    fn open(&self, parent: BorrowedFd<'_>, name: &CString) -> Outcome<(OwnedFd, Stat)> {
        // NONBLOCK: should a fifo have taken the file's place, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat(parent, name, flags, Mode::empty())
            .and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)));
        opened.map_err(|error| self.failed(std::io::Error::from(error)))
    }

    fn regular(&mut self, fd: OwnedFd, stat: &Stat) -> Outcome {
        self.field(b"regular");
        // Nix asks for the owner's bit only.
        if stat.st_mode & 0o100 != 0 {
            self.field(b"executable");
            self.field(b"");
        }
        self.field(b"contents");
        let size = u64::try_from(stat.st_size).map_err(|_| self.failed("negative size"))?;
        self.fields.extend_from_slice(&size.to_le_bytes());
        self.flush_fields()?;
        self.contents(File::from(fd), size)?;
        self.fields.resize(padding(size), 0);
        Ok(())
    }

    fn contents(&mut self, mut file: File, size: u64) -> Outcome {
        let mut left = size;
        while left > 0 {
            let want = self.chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match file.read(&mut self.chunk[..want]) {
                Ok(0) => return Err(self.failed("it became shorter while it was read")),
                Ok(got) => got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(error)),
            };
            self.out.write_all(&self.chunk[..got])?;
            left -= got as u64;
        }
        let now = rustix::fs::fstat(&file).map_err(|error| self.failed(std::io::Error::from(error)))?;
        if u64::try_from(now.st_size) == Ok(size) { Ok(()) } else { Err(self.failed("it changed while it was read")) }
    }

    fn symlink(&mut self, parent: BorrowedFd<'_>, name: &CString) -> Outcome {
        let target = rustix::fs::readlinkat(parent, name, Vec::new())
            .map_err(|error| self.failed(std::io::Error::from(error)))?;
        if target.as_bytes().len() > MAX_TARGET {
            return Err(self.failed(format_args!("the target is longer than {MAX_TARGET} bytes")));
        }
        self.field(b"symlink");
        self.field(b"target");
        self.field(target.as_bytes());
        Ok(())
    }

    fn directory(&mut self, fd: &OwnedFd) -> Outcome {
        self.field(b"directory");
        self.depth += 1;
        for entry in self.entries(fd)? {
            let name = entry.name.as_bytes();
            self.path.push(std::ffi::OsString::from_vec(name.to_vec()));
            if name.windows(CASE_HACK.len()).any(|window| window == CASE_HACK) {
                (self.warn)(&format!("{}: Lix refuses names with ~nix~case~hack~", self.path.display()));
            }
            for field in [b"entry".as_slice(), b"(", b"name", name, b"node"] {
                self.field(field);
            }
            self.node(fd.as_fd(), &entry.name, entry.kind)?;
            self.field(b")");
            self.path.pop();
        }
        self.depth -= 1;
        Ok(())
    }

    /// The entries of a directory in the order of their bytes, without `.` and `..`.
    fn entries(&self, fd: &OwnedFd) -> Outcome<Vec<Entry>> {
        let failed = |error: Errno| self.failed(std::io::Error::from(error));
        let mut entries = Vec::new();
        for entry in Dir::read_from(fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                entries.push(Entry { name: name.to_owned(), kind: entry.file_type() });
            }
        }
        entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Ok(entries)
    }
}

/// Bytes of the fields `(` and `type`, which are taken back when the type has to be asked for.
const TYPE_FIELDS: usize = 32;

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        _ => "a file of this type",
    }
}
