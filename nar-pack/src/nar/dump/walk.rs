//! Walks a tree in NAR order and divides it into batches. Reads directories but neither files nor symbolic links, so that
//! the lock around a walk is held only briefly.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::leaf::Leaf;
use super::{CHUNK_SIZE, pack_error};
use crate::error::Result;
use crate::nar::open_dir::{Parent, fd_of, path_of};
use crate::nar::{CASE_HACK, MAGIC, MAX_DEPTH, push_string};
use crate::root_dir::OpenDir;

/// Maximum number of files and symbolic links in a batch.
const MAX_LEAVES_PER_BATCH: usize = 128;
/// Size of the buffer for directory entries, in bytes.
const DIRECTORY_BUFFER_SIZE: usize = 32 * 1024;

/// A position in the tree.
pub(super) struct Walk {
    /// The root of the tree and the directory that it is in, until it is visited.
    root: Option<(Parent, CString)>,
    /// The directories from the root to the current one, each with the entries that remain.
    stack: Vec<(Arc<OpenDir>, std::vec::IntoIter<Entry>)>,
    directory_buffer: Vec<u8>,
}

struct Entry {
    name: CString,
    kind: FileType,
}

/// A section of the NAR: encoded strings, and the files and symbolic links to read and insert between them.
#[derive(Default)]
pub(super) struct Batch {
    strings: Vec<u8>,
    leaves: Vec<(usize, Leaf)>,
    pub(super) warnings: Vec<String>,
}

impl Walk {
    pub(super) fn new(parent: Parent, name: &OsStr) -> Result<Self> {
        let root = CString::new(name.as_bytes())
            .map_err(|_| pack_error(&path_of(&parent, name.as_bytes()), "the path contains a NUL byte"))?;
        let directory_buffer = Vec::with_capacity(DIRECTORY_BUFFER_SIZE);
        Ok(Self { root: Some((parent, root)), stack: Vec::new(), directory_buffer })
    }

    /// Returns whether the entries that are known to remain do not justify starting threads.
    pub(super) fn is_nearly_done(&self) -> bool {
        self.stack.iter().map(|(_, entries)| entries.len()).sum::<usize>() < MAX_LEAVES_PER_BATCH
    }

    /// Returns the next batch; none at the end of the tree.
    pub(super) fn next(&mut self) -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        if let Some((parent, root)) = self.root.take() {
            push_string(&mut batch.strings, MAGIC);
            self.visit_node(&mut batch, parent, Entry { name: root, kind: FileType::Unknown })?;
        }
        while batch.leaves.len() < MAX_LEAVES_PER_BATCH && batch.strings.len() < CHUNK_SIZE {
            let Some((dir, entries)) = self.stack.last_mut() else { break };
            if let Some(entry) = entries.next() {
                let dir = Arc::clone(dir);
                self.visit_entry(&mut batch, dir, entry)?;
            } else {
                self.stack.pop();
                batch.close_parenthesis();
                if !self.stack.is_empty() {
                    batch.close_parenthesis();
                }
            }
        }
        Ok((!batch.strings.is_empty()).then_some(batch))
    }

    fn visit_entry(&mut self, batch: &mut Batch, dir: Arc<OpenDir>, entry: Entry) -> Result {
        let name = entry.name.as_bytes();
        if name.windows(CASE_HACK.len()).any(|window| window == CASE_HACK) {
            let path = dir.path().join(OsStr::from_bytes(name));
            batch.warnings.push(format!("{}: Lix refuses file names that contain ~nix~case~hack~", path.display()));
        }
        for string in [b"entry".as_slice(), b"(", b"name", name, b"node"] {
            push_string(&mut batch.strings, string);
        }
        self.visit_node(batch, Some(dir), entry)
    }

    fn visit_node(&mut self, batch: &mut Batch, parent: Parent, entry: Entry) -> Result {
        let Entry { name, kind } = entry;
        if self.stack.len() == MAX_DEPTH {
            let reason = format_args!("nested deeper than {MAX_DEPTH} directories");
            return Err(pack_error(&path_of(&parent, name.as_bytes()), reason));
        }
        let errno = |error: Errno| pack_error(&path_of(&parent, name.as_bytes()), std::io::Error::from(error));
        let kind = match kind {
            // Some file systems do not report types in directory entries.
            FileType::Unknown => {
                let stat = rustix::fs::statat(fd_of(&parent), &name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        if kind != FileType::Directory {
            let is_entry = !self.stack.is_empty();
            batch.leaves.push((batch.strings.len(), Leaf { parent, name, kind }));
            if is_entry {
                batch.close_parenthesis();
            }
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(fd_of(&parent), &name, flags, Mode::empty()).map_err(errno)?;
        let entries = self.read_entries(&fd).map_err(errno)?;
        let dir = OpenDir::new(fd, path_of(&parent, name.as_bytes()));
        for string in [b"(".as_slice(), b"type", b"directory"] {
            push_string(&mut batch.strings, string);
        }
        self.stack.push((Arc::new(dir), entries.into_iter()));
        Ok(())
    }

    /// Reads the entries of a directory, sorted by the bytes of their names, without `.` and `..`.
    fn read_entries(&mut self, fd: &OwnedFd) -> Result<Vec<Entry>, Errno> {
        let mut entries = Vec::new();
        let mut dir = RawDir::new(fd, self.directory_buffer.spare_capacity_mut());
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
    fn close_parenthesis(&mut self) {
        push_string(&mut self.strings, b")");
    }

    /// Reads the files and symbolic links, and appends the section to `buf`. `flush` is called when the buffer is full and
    /// at the end, and must empty it.
    pub(super) fn read(&self, buf: &mut Vec<u8>, mut flush: impl FnMut(&mut Vec<u8>) -> Result) -> Result {
        let mut copied = 0;
        for (position, leaf) in &self.leaves {
            reserve(buf, position - copied, &mut flush)?;
            buf.extend_from_slice(&self.strings[copied..*position]);
            copied = *position;
            leaf.read(buf, &mut flush)?;
        }
        reserve(buf, self.strings.len() - copied, &mut flush)?;
        buf.extend_from_slice(&self.strings[copied..]);
        flush(buf)
    }
}

/// Flushes `buf` if `additional` bytes do not fit without reallocation.
pub(super) fn reserve(buf: &mut Vec<u8>, additional: usize, flush: &mut impl FnMut(&mut Vec<u8>) -> Result) -> Result {
    if buf.is_empty() || buf.capacity() - buf.len() >= additional { Ok(()) } else { flush(buf) }
}
