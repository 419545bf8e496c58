//! A file tree to a NAR.
//!
//! Small files are all system calls, so a large tree is read by several threads: each takes the next few entries in
//! the order of the NAR, and the one that writes puts what they read one after another. What is read ahead is bounded,
//! so memory does not grow with the tree. A tree of few entries is read by the thread that writes.

use std::ffi::{CString, OsStr};
use std::io::Write;
use std::mem::replace;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::dir::{Dir, Parent, fd_of, locked, path_of};
use super::{CASE_HACK, MAX_DEPTH, MAX_TARGET, padding, push_string};
use crate::error::{Error, Result};

/// Bytes of NAR that are handed on at once; a larger file is read in pieces of this size.
const CHUNK: usize = 512 * 1024;
/// Bytes that a thread has free when it begins to read a file or a link: most files are smaller, and every link.
const ROOM: usize = 64 * 1024;
/// More bytes than what stands after the contents of a file.
const END: usize = 64;
/// Seconds by which a change may be dated too early: some file systems know no fractions, and a server has its own clock.
const DATES: i64 = 10;
/// Files and links that a thread takes at once.
const LEAVES: usize = 128;
/// Most threads that read.
const MOST_READERS: usize = 4;
/// Batches that have been taken and not yet written.
const BATCHES_AHEAD: usize = 4;
/// Chunks of one batch that wait to be written.
const CHUNKS_AHEAD: usize = 2;
/// Bytes of directory that are read in one call.
const DIRECTORY: usize = 32 * 1024;

/// Writes `path` as a NAR, byte for byte as `nix-store --dump` does; `warn` is told of names that some readers refuse.
///
/// Files are read, never mapped: breakpoints that tracing tools set leak into mappings.
///
/// # Errors
/// Fails with the path of what cannot be read, of what is neither file, directory nor symbolic link, and of a file
/// that is seen to change while it is read. Then the NAR is cut off.
pub fn dump(path: &Path, out: &mut impl Write, warn: &mut impl FnMut(&str)) -> Result {
    let mut walk = Walk::new(path)?;
    let mut buf = Vec::with_capacity(CHUNK);
    // The root alone first: a file has no directory to be read beside it.
    while let Some(batch) = walk.next()? {
        batch.warnings.iter().for_each(|warning| warn(warning));
        let put = |buf: &mut Vec<u8>| {
            out.write_all(buf)?;
            buf.clear();
            Ok(())
        };
        batch.read(&mut buf, put)?;
        if !walk.is_short() {
            return read_ahead(walk, buf, out, warn);
        }
    }
    Ok(())
}

/// What a thread sends of its batch.
enum Sent {
    Warning(String),
    Chunk(Vec<u8>),
}

type Batches = SyncSender<Receiver<Result<Sent>>>;

/// Writes the rest of the walk, which several threads read.
fn read_ahead(walk: Walk, buf: Vec<u8>, out: &mut impl Write, warn: &mut impl FnMut(&str)) -> Result {
    let walk = Mutex::new(walk);
    let free = Mutex::new(vec![buf]);
    let (batches, in_order) = sync_channel(BATCHES_AHEAD);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..readers())
            .map(|_| {
                let (walk, free, batches) = (&walk, &free, batches.clone());
                scope.spawn(move || read_batches(walk, free, &batches))
            })
            .collect();
        drop(batches);
        let written = write_batches(in_order, &free, out, warn);
        // A thread that died has left its batch short.
        let died = readers.into_iter().filter_map(|reader| reader.join().err()).count() > 0;
        written.and(if died { Err(Error::failed("a reading thread died")) } else { Ok(()) })
    })
}

/// One processor is left to the thread that writes: more threads than processors were slower on what is in memory.
fn readers() -> usize {
    thread::available_parallelism().map_or(1, |processors| (processors.get() - 1).clamp(1, MOST_READERS))
}

fn write_batches(
    batches: Receiver<Receiver<Result<Sent>>>,
    free: &Mutex<Vec<Vec<u8>>>,
    out: &mut impl Write,
    warn: &mut impl FnMut(&str),
) -> Result {
    for batch in batches {
        for sent in batch {
            match sent? {
                Sent::Warning(warning) => warn(&warning),
                Sent::Chunk(mut chunk) => {
                    out.write_all(&chunk)?;
                    chunk.clear();
                    locked(free).push(chunk);
                }
            }
        }
    }
    Ok(())
}

/// Reads one batch after another until the walk ends, or nobody wants them any more.
fn read_batches(walk: &Mutex<Walk>, free: &Mutex<Vec<Vec<u8>>>, batches: &Batches) {
    let fresh = || locked(free).pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
    let mut buf = fresh();
    loop {
        let (chunks, receiver) = sync_channel(CHUNKS_AHEAD);
        let batch = {
            let mut walk = locked(walk);
            let batch = walk.next();
            // In the order of the walk, hence before it is unlocked.
            if matches!(batch, Ok(None)) || batches.send(receiver).is_err() {
                return;
            }
            batch
        };
        let gone = |_| Error::failed("nobody writes the NAR any more");
        let read = batch.and_then(|batch| {
            let batch = batch.unwrap_or_default();
            for warning in &batch.warnings {
                chunks.send(Ok(Sent::Warning(warning.clone()))).map_err(gone)?;
            }
            batch.read(&mut buf, |buf| chunks.send(Ok(Sent::Chunk(replace(buf, fresh())))).map_err(gone))
        });
        if let Err(failure) = read {
            // The one that writes stops there, if it has not stopped before.
            let _ = chunks.send(Err(failure));
            return;
        }
    }
}

fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::failed(format!("packing {}: {why}", path.display()))
}

struct Entry {
    name: CString,
    kind: FileType,
}

/// Visits the tree in the order of the NAR; reads directories, but neither files nor links.
struct Walk {
    root: Option<CString>,
    /// The directories from the root to the one at hand, with the entries that are left.
    stack: Vec<(Arc<Dir>, std::vec::IntoIter<Entry>)>,
    buffer: Vec<u8>,
}

/// A stretch of the NAR: strings, and files and links between them that are still to be read.
#[derive(Default)]
struct Batch {
    fields: Vec<u8>,
    leaves: Vec<Leaf>,
    warnings: Vec<String>,
}

struct Leaf {
    /// Where in the strings of its batch it stands.
    at: usize,
    parent: Parent,
    name: CString,
    kind: FileType,
}

impl Walk {
    fn new(path: &Path) -> Result<Self> {
        let root = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(path, "the path has a NUL byte"))?;
        Ok(Self { root: Some(root), stack: Vec::new(), buffer: Vec::with_capacity(DIRECTORY) })
    }

    /// Whether what is left, as far as it is known, is not worth a thread.
    fn is_short(&self) -> bool {
        self.stack.iter().map(|(_, entries)| entries.len()).sum::<usize>() < LEAVES
    }

    /// The next stretch of the NAR; none at its end.
    fn next(&mut self) -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        if let Some(root) = self.root.take() {
            push_string(&mut batch.fields, super::MAGIC);
            self.node(&mut batch, None, Entry { name: root, kind: FileType::Unknown })?;
        }
        while batch.leaves.len() < LEAVES && batch.fields.len() < CHUNK {
            let Some((dir, entries)) = self.stack.last_mut() else { break };
            if let Some(entry) = entries.next() {
                let dir = Arc::clone(dir);
                self.entry(&mut batch, dir, entry)?;
            } else {
                self.stack.pop();
                batch.close();
                if !self.stack.is_empty() {
                    batch.close();
                }
            }
        }
        Ok((!batch.fields.is_empty()).then_some(batch))
    }

    fn entry(&mut self, batch: &mut Batch, dir: Arc<Dir>, entry: Entry) -> Result {
        let name = entry.name.as_bytes();
        if name.windows(CASE_HACK.len()).any(|window| window == CASE_HACK) {
            let path = dir.path.join(OsStr::from_bytes(name));
            batch.warnings.push(format!("{}: Lix refuses names with ~nix~case~hack~", path.display()));
        }
        for field in [b"entry".as_slice(), b"(", b"name", name, b"node"] {
            push_string(&mut batch.fields, field);
        }
        self.node(batch, Some(dir), entry)
    }

    fn node(&mut self, batch: &mut Batch, parent: Parent, entry: Entry) -> Result {
        let Entry { name, kind } = entry;
        if self.stack.len() == MAX_DEPTH {
            let why = format_args!("nested deeper than {MAX_DEPTH} levels of directories");
            return Err(failed(&path_of(&parent, name.as_bytes()), why));
        }
        let errno = |error: Errno| failed(&path_of(&parent, name.as_bytes()), std::io::Error::from(error));
        let kind = match kind {
            // The file system does not tell types with names.
            FileType::Unknown => {
                let stat = rustix::fs::statat(fd_of(&parent), &name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        if kind != FileType::Directory {
            let is_entry = parent.is_some();
            batch.leaves.push(Leaf { at: batch.fields.len(), parent, name, kind });
            if is_entry {
                batch.close();
            }
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(fd_of(&parent), &name, flags, Mode::empty()).map_err(errno)?;
        let entries = self.entries(&fd).map_err(errno)?;
        let dir = Dir { fd, path: path_of(&parent, name.as_bytes()) };
        for field in [b"(".as_slice(), b"type", b"directory"] {
            push_string(&mut batch.fields, field);
        }
        self.stack.push((Arc::new(dir), entries.into_iter()));
        Ok(())
    }

    /// The entries of a directory in the order of their bytes, without `.` and `..`.
    fn entries(&mut self, fd: &OwnedFd) -> Result<Vec<Entry>, Errno> {
        let mut entries = Vec::new();
        let mut dir = RawDir::new(fd, self.buffer.spare_capacity_mut());
        while let Some(entry) = dir.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                entries.push(Entry { name: name.to_owned(), kind: entry.file_type() });
            }
        }
        entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Ok(entries)
    }
}

impl Batch {
    fn close(&mut self) {
        push_string(&mut self.fields, b")");
    }

    /// Reads what is to be read. `put` is given the bytes whenever the buffer is full, and leaves an empty one.
    fn read(&self, buf: &mut Vec<u8>, mut put: impl FnMut(&mut Vec<u8>) -> Result) -> Result {
        let mut done = 0;
        for leaf in &self.leaves {
            make_room(buf, leaf.at - done, &mut put)?;
            buf.extend_from_slice(&self.fields[done..leaf.at]);
            done = leaf.at;
            leaf.read(buf, &mut put)?;
        }
        make_room(buf, self.fields.len() - done, &mut put)?;
        buf.extend_from_slice(&self.fields[done..]);
        put(buf)
    }
}

/// Sees to it that `bytes` can be added to what is in `buf` without making it larger.
fn make_room(buf: &mut Vec<u8>, bytes: usize, put: &mut impl FnMut(&mut Vec<u8>) -> Result) -> Result {
    if buf.is_empty() || buf.capacity() - buf.len() >= bytes { Ok(()) } else { put(buf) }
}

impl Leaf {
    fn failed(&self, why: impl std::fmt::Display) -> Error {
        failed(&path_of(&self.parent, self.name.as_bytes()), why)
    }

    fn errno(&self, error: Errno) -> Error {
        self.failed(std::io::Error::from(error))
    }

    fn read(&self, buf: &mut Vec<u8>, put: &mut impl FnMut(&mut Vec<u8>) -> Result) -> Result {
        make_room(buf, ROOM, put)?;
        match self.kind {
            FileType::RegularFile => self.regular(buf, put)?,
            FileType::Symlink => self.symlink(buf)?,
            FileType::Fifo => return Err(self.failed("a fifo cannot be in a NAR")),
            FileType::Socket => return Err(self.failed("a socket cannot be in a NAR")),
            FileType::BlockDevice | FileType::CharacterDevice => {
                return Err(self.failed("a device cannot be in a NAR"));
            }
            _ => return Err(self.failed("a file of this type cannot be in a NAR")),
        }
        push_string(buf, b")");
        Ok(())
    }

    /// Reads first and looks afterwards: that tells all of a file that fits and was not changed lately, as nearly all are.
    /// Any other is looked at twice, and read between.
    fn regular(&self, buf: &mut Vec<u8>, put: &mut impl FnMut(&mut Vec<u8>) -> Result) -> Result {
        // NONBLOCK: should a fifo have taken the file's place, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(fd_of(&self.parent), &self.name, flags, Mode::empty())
            .map_err(|error| self.errno(error))?;
        for field in [b"(".as_slice(), b"type", b"regular"] {
            push_string(buf, field);
        }
        let mark = buf.len();
        push_string(buf, b"contents");
        buf.extend_from_slice(&[0; 8]);
        let begun = clock_gettime(ClockId::RealtimeCoarse);
        let got = self.read_some(&fd, buf);
        let stat = rustix::fs::fstat(&fd).map_err(|error| self.errno(error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.failed("it changed its type while it was read"));
        }
        let size = u64::try_from(stat.st_size).map_err(|_| self.failed("negative size"))?;
        let got = got?;
        let contents = buf.len() - got;
        buf[contents - 8..contents].copy_from_slice(&size.to_le_bytes());
        let left = if stat.st_ctime < begun.tv_sec - DATES {
            size.checked_sub(got as u64).ok_or_else(|| self.failed("it became shorter while it was read"))?
        } else {
            buf.truncate(contents);
            rustix::fs::seek(&fd, SeekFrom::Start(0)).map_err(|error| self.errno(error))?;
            size
        };
        // Nix asks for the owner's bit only.
        if stat.st_mode & 0o100 != 0 {
            let read = buf.split_off(mark);
            push_string(buf, b"executable");
            push_string(buf, b"");
            make_room(buf, read.len(), put)?;
            buf.extend_from_slice(&read);
        }
        if left > 0 {
            self.rest(&fd, &stat, left, buf, put)?;
        }
        make_room(buf, END, put)?;
        buf.resize(buf.len() + padding(size), 0);
        Ok(())
    }

    /// Reads what the file has left, and sees whether it is still the file of `stat`.
    fn rest(
        &self,
        fd: &OwnedFd,
        stat: &Stat,
        mut left: u64,
        buf: &mut Vec<u8>,
        put: &mut impl FnMut(&mut Vec<u8>) -> Result,
    ) -> Result {
        while left > 0 {
            make_room(buf, ROOM, put)?;
            let got = self.read_some(fd, buf)? as u64;
            if got == 0 {
                return Err(self.failed("it became shorter while it was read"));
            }
            left = left.checked_sub(got).ok_or_else(|| self.failed("it grew while it was read"))?;
        }
        let now = rustix::fs::fstat(fd).map_err(|error| self.errno(error))?;
        let version =
            |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
        if version(&now) == version(stat) { Ok(()) } else { Err(self.failed("it changed while it was read")) }
    }

    /// One read, of as much as there is room for; 0 at the end of the file.
    fn read_some(&self, fd: &OwnedFd, buf: &mut Vec<u8>) -> Result<usize> {
        loop {
            match rustix::io::read(fd, spare_capacity(buf)) {
                Ok(got) => return Ok(got),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.errno(error)),
            }
        }
    }

    fn symlink(&self, buf: &mut Vec<u8>) -> Result {
        let target =
            rustix::fs::readlinkat(fd_of(&self.parent), &self.name, Vec::new()).map_err(|error| self.errno(error))?;
        if target.as_bytes().len() > MAX_TARGET {
            return Err(self.failed(format_args!("the target is longer than {MAX_TARGET} bytes")));
        }
        for field in [b"(".as_slice(), b"type", b"symlink", b"target", target.as_bytes()] {
            push_string(buf, field);
        }
        Ok(())
    }
}
