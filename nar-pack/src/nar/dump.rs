//! A file tree to a NAR.
//!
//! Small files are all system calls, so a large tree is read by several threads: each takes the next few entries in
//! the order of the NAR, reads them, and writes them when it is its turn. What is read ahead is bounded, so memory does
//! not grow with the tree. A tree of few entries is read by one thread.

use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::dir::{Dir, Parent, fd_of, locked, path_of};
use super::{CASE_HACK, MAX_DEPTH, MAX_TARGET, padding, push_string};
use crate::stage::{Failure, Outcome};

/// Bytes of NAR that a thread holds at most.
const CHUNK: usize = 1024 * 1024;
/// Bytes that a thread has free when it begins to read a file: most files are smaller.
const ROOM: usize = 128 * 1024;
/// Files and links that a thread takes at once.
const LEAVES: usize = 32;
/// Most threads that read.
const MOST_READERS: usize = 4;
/// Bytes of directory that are read in one call.
const DIRECTORY: usize = 32 * 1024;

/// Writes `path` as a NAR, byte for byte as `nix-store --dump` does; `warn` is told of names that some readers refuse.
///
/// Files are read, never mapped: breakpoints that tracing tools set leak into mappings.
///
/// # Errors
/// Fails with the path of what cannot be read, of what is neither file, directory nor symbolic link, and of a file
/// that is seen to change while it is read. Then the NAR is cut off.
pub fn dump(path: &Path, out: &mut (impl Write + Send), warn: &mut (impl FnMut(&str) + Send)) -> Outcome {
    let mut walk = Walk::new(path)?;
    let mut buf = Vec::with_capacity(CHUNK);
    // The root alone first: a file has no directory to be read beside it.
    while let Some(batch) = walk.next(warn)? {
        let put = |buf: &mut Vec<u8>| {
            out.write_all(buf)?;
            buf.clear();
            Ok(())
        };
        batch.read(&mut buf, put)?;
        if !walk.is_short() {
            return dump_by_turns(Readers::new(walk, out, warn), buf);
        }
    }
    Ok(())
}

/// Dumps the rest of the walk on this thread and on others.
fn dump_by_turns<W: Write + Send, F: FnMut(&str) + Send>(readers: Readers<'_, W, F>, buf: Vec<u8>) -> Outcome {
    let others = thread::available_parallelism().map_or(1, usize::from).min(MOST_READERS) - 1;
    thread::scope(|scope| {
        for _ in 0..others {
            // What threads there are will do.
            let _ = thread::Builder::new().spawn_scoped(scope, || readers.read(Vec::with_capacity(CHUNK)));
        }
        readers.read(buf);
    });
    let turn = readers.turn.into_inner().unwrap_or_else(PoisonError::into_inner);
    turn.failure.map_or(Ok(()), Err)
}

/// What the threads share that dump a tree.
struct Readers<'a, W, F> {
    ahead: Mutex<Ahead<'a, F>>,
    turn: Mutex<Turn<'a, W>>,
    /// The turn has passed to another batch, or there is a failure.
    passed: Condvar,
}

/// Where the next batch comes from.
struct Ahead<'a, F> {
    walk: Walk,
    warn: &'a mut F,
    /// Number of the next batch.
    number: u64,
}

/// Where the batches go, one after another.
struct Turn<'a, W> {
    /// Number of the batch that may be written.
    number: u64,
    out: &'a mut W,
    /// The first one in the order of the NAR; nothing is written after it.
    failure: Option<Failure>,
}

impl<'a, W: Write, F: FnMut(&str)> Readers<'a, W, F> {
    fn new(walk: Walk, out: &'a mut W, warn: &'a mut F) -> Self {
        Self {
            ahead: Mutex::new(Ahead { walk, warn, number: 0 }),
            turn: Mutex::new(Turn { number: 0, out, failure: None }),
            passed: Condvar::new(),
        }
    }

    /// Dumps one batch after another until the walk ends, or something has failed.
    fn read(&self, mut buf: Vec<u8>) {
        loop {
            let (place, batch) = {
                let mut ahead = locked(&self.ahead);
                let place = Place { readers: self, number: ahead.number, turn: None };
                ahead.number += 1;
                let Ahead { walk, warn, .. } = &mut *ahead;
                (place, walk.next(warn))
            };
            match batch {
                Ok(None) => return place.leave(Ok(())),
                Ok(Some(batch)) => {
                    let mut place = place;
                    let read = batch.read(&mut buf, |buf| place.write(buf));
                    let go_on = read.is_ok();
                    place.leave(read);
                    if !go_on {
                        return;
                    }
                }
                Err(failure) => return place.leave(Err(failure)),
            }
        }
    }
}

/// A batch's place in the order of the NAR.
struct Place<'r, 'a, W, F> {
    readers: &'r Readers<'a, W, F>,
    number: u64,
    /// Held from its first write on.
    turn: Option<MutexGuard<'r, Turn<'a, W>>>,
}

impl<'r, 'a, W: Write, F> Place<'r, 'a, W, F> {
    /// Waits until all before it is written.
    fn turn(&mut self) -> &mut Turn<'a, W> {
        let Self { readers, number, turn } = self;
        turn.get_or_insert_with(|| {
            let waits = |turn: &mut Turn<'a, W>| turn.number != *number && turn.failure.is_none();
            readers.passed.wait_while(locked(&readers.turn), waits).unwrap_or_else(PoisonError::into_inner)
        })
    }

    fn write(&mut self, buf: &mut Vec<u8>) -> Outcome {
        let turn = self.turn();
        // It is the other one's to tell.
        if let Some(failure) = &turn.failure {
            return Err(failure.clone());
        }
        turn.out.write_all(buf)?;
        buf.clear();
        Ok(())
    }

    fn leave(mut self, result: Outcome) {
        let turn = self.turn();
        if let Err(failure) = result {
            turn.failure.get_or_insert(failure);
        }
    }
}

impl<W, F> Drop for Place<'_, '_, W, F> {
    /// Passes the turn on. A thread that dies without having had its turn fails the dump.
    fn drop(&mut self) {
        let mut turn = self.turn.take().unwrap_or_else(|| locked(&self.readers.turn));
        if turn.number == self.number && !thread::panicking() {
            turn.number += 1;
        } else {
            turn.failure.get_or_insert_with(|| Failure::failed("a reading thread died"));
        }
        drop(turn);
        self.readers.passed.notify_all();
    }
}

fn failed(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("packing {}: {why}", path.display()))
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
}

struct Leaf {
    /// Where in the strings of its batch it stands.
    at: usize,
    parent: Parent,
    name: CString,
    kind: FileType,
}

impl Walk {
    fn new(path: &Path) -> Outcome<Self> {
        let root = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(path, "the path has a NUL byte"))?;
        Ok(Self { root: Some(root), stack: Vec::new(), buffer: Vec::with_capacity(DIRECTORY) })
    }

    /// Whether what is left, as far as it is known, is not worth a thread.
    fn is_short(&self) -> bool {
        self.stack.iter().map(|(_, entries)| entries.len()).sum::<usize>() < LEAVES
    }

    /// The next stretch of the NAR; none at its end.
    fn next(&mut self, warn: &mut impl FnMut(&str)) -> Outcome<Option<Batch>> {
        let mut batch = Batch::default();
        if let Some(root) = self.root.take() {
            push_string(&mut batch.fields, super::MAGIC);
            self.node(&mut batch, None, Entry { name: root, kind: FileType::Unknown })?;
        }
        while batch.leaves.len() < LEAVES && batch.fields.len() < CHUNK {
            let Some((dir, entries)) = self.stack.last_mut() else { break };
            if let Some(entry) = entries.next() {
                let dir = Arc::clone(dir);
                self.entry(&mut batch, dir, entry, warn)?;
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

    fn entry(&mut self, batch: &mut Batch, dir: Arc<Dir>, entry: Entry, warn: &mut impl FnMut(&str)) -> Outcome {
        let name = entry.name.as_bytes();
        if name.windows(CASE_HACK.len()).any(|window| window == CASE_HACK) {
            let path = dir.path.join(OsStr::from_bytes(name));
            warn(&format!("{}: Lix refuses names with ~nix~case~hack~", path.display()));
        }
        for field in [b"entry".as_slice(), b"(", b"name", name, b"node"] {
            push_string(&mut batch.fields, field);
        }
        self.node(batch, Some(dir), entry)
    }

    fn node(&mut self, batch: &mut Batch, parent: Parent, entry: Entry) -> Outcome {
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
    fn read(&self, buf: &mut Vec<u8>, mut put: impl FnMut(&mut Vec<u8>) -> Outcome) -> Outcome {
        let mut done = 0;
        for leaf in &self.leaves {
            buf.extend_from_slice(&self.fields[done..leaf.at]);
            done = leaf.at;
            leaf.read(buf, &mut put)?;
        }
        buf.extend_from_slice(&self.fields[done..]);
        put(buf)
    }
}

impl Leaf {
    fn failed(&self, why: impl std::fmt::Display) -> Failure {
        failed(&path_of(&self.parent, self.name.as_bytes()), why)
    }

    fn errno(&self, error: Errno) -> Failure {
        self.failed(std::io::Error::from(error))
    }

    fn read(&self, buf: &mut Vec<u8>, put: &mut impl FnMut(&mut Vec<u8>) -> Outcome) -> Outcome {
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

    /// Reads first and looks afterwards: of a file that fits, which is nearly every one, that look tells all.
    fn regular(&self, buf: &mut Vec<u8>, put: &mut impl FnMut(&mut Vec<u8>) -> Outcome) -> Outcome {
        // NONBLOCK: should a fifo have taken the file's place, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(fd_of(&self.parent), &self.name, flags, Mode::empty())
            .map_err(|error| self.errno(error))?;
        if buf.len() + ROOM > CHUNK {
            put(buf)?;
        }
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
        let mut left = u64::try_from(stat.st_size).map_err(|_| self.failed("negative size"))?;
        let size = left.to_le_bytes();
        let got = got?;
        let contents = buf.len() - got;
        buf[contents - size.len()..contents].copy_from_slice(&size);
        // Changes are dated by the clock that was asked, hence not before what it said.
        if (stat.st_ctime, stat.st_ctime_nsec.cast_signed()) < (begun.tv_sec, begun.tv_nsec) {
            left = left.checked_sub(got as u64).ok_or_else(|| self.failed("it became shorter while it was read"))?;
        } else {
            buf.truncate(contents);
            rustix::fs::seek(&fd, SeekFrom::Start(0)).map_err(|error| self.errno(error))?;
        }
        // Nix asks for the owner's bit only.
        if stat.st_mode & 0o100 != 0 {
            let mut fields = Vec::new();
            push_string(&mut fields, b"executable");
            push_string(&mut fields, b"");
            buf.splice(mark..mark, fields);
        }
        if left > 0 {
            self.rest(&fd, &stat, left, buf, put)?;
        }
        buf.resize(buf.len() + padding(u64::from_le_bytes(size)), 0);
        Ok(())
    }

    /// Reads what the file has left, and sees whether it is still the file of `stat`.
    fn rest(
        &self,
        fd: &OwnedFd,
        stat: &Stat,
        mut left: u64,
        buf: &mut Vec<u8>,
        put: &mut impl FnMut(&mut Vec<u8>) -> Outcome,
    ) -> Outcome {
        while left > 0 {
            if buf.len() + ROOM > CHUNK {
                put(buf)?;
            }
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
    fn read_some(&self, fd: &OwnedFd, buf: &mut Vec<u8>) -> Outcome<usize> {
        loop {
            match rustix::io::read(fd, spare_capacity(buf)) {
                Ok(got) => return Ok(got),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.errno(error)),
            }
        }
    }

    fn symlink(&self, buf: &mut Vec<u8>) -> Outcome {
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
