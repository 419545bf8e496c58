//! Restores a NAR as a file tree. Everything is created relative to open directories, so that no symbolic link is ever
//! followed. The calling thread reads the NAR and creates files and directories; the contents of small files are left to
//! [`writers`]. An incomplete tree is removed.

mod remove_tree;
mod writers;

use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use self::remove_tree::remove_from;
pub use self::remove_tree::{remove_tree, remove_tree_in};
use self::writers::{FileCreator, MAX_BATCH_SIZE, MTIME, Writers, release_dir, unpack_error, write_all};
use super::open_dir::{Parent, fd_of, path_of};
use super::{Visitor, parse};
use crate::error::{Context as _, Error, Result};
use crate::root_dir::{OpenDir, open_parent};

/// Restores a NAR as `path`, which must not exist, with the modes 0444 and 0555 and the modification times of a store
/// object. Returns the size of the NAR in bytes. Removes an incomplete tree.
///
/// # Errors
/// Refuses a malformed NAR; fails if `path` exists or the file system refuses.
pub fn restore(input: &mut impl BufRead, path: &Path) -> Result<u64> {
    let mut restorer = Restorer::new(path)?;
    let result = parse(input, &mut restorer);
    restorer.abort_on_error(result)
}

/// The visitor behind [`restore`]. The tree is complete when the visitor has returned from the end of the root: small
/// files may be written later than the calls for them.
///
/// The directory that contains the tree stays open, and everything is created and removed relative to it: nothing is
/// written or removed elsewhere when a symbolic link replaces one of the directories meanwhile.
pub struct Restorer {
    /// The directory that contains the tree.
    parent: Parent,
    /// Name of the root of the tree in it.
    root: OsString,
    /// The root, once it has been created: it must be in its place at the end, or be removed on an error.
    created: Option<FileId>,
    /// The directories from the root to the current one.
    stack: Vec<Arc<OpenDir>>,
    /// Name of the current entry in the innermost directory; none for the root.
    name: Option<Vec<u8>>,
    /// The current file.
    file: Option<CurrentFile>,
    creator: FileCreator,
    writers: Writers,
}

/// Where the contents of the current file go.
enum CurrentFile {
    /// To a batch of small files.
    Batched,
    /// Directly to the file.
    Open(OwnedFd),
}

/// Identifies a file: device and inode number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl Restorer {
    /// Creates a visitor that restores a NAR as `path`, which must not exist.
    ///
    /// # Errors
    /// Fails if the directory that is to contain `path` cannot be opened.
    pub fn new(path: &Path) -> Result<Self> {
        let opened = open_parent(path).map_err(|error| unpack_error(&None, path.as_os_str().as_bytes(), error))?;
        Ok(match opened {
            Some((dir, name)) => Self::new_in(Arc::new(dir), name),
            None => Self::with_parent(None, path.as_os_str()),
        })
    }

    /// Creates a visitor that restores a NAR as the entry `name` of an open directory, which must not exist.
    #[must_use]
    pub fn new_in(dir: Arc<OpenDir>, name: impl AsRef<OsStr>) -> Self {
        Self::with_parent(Some(dir), name.as_ref())
    }

    fn with_parent(parent: Parent, root: &OsStr) -> Self {
        Self {
            parent,
            root: root.to_owned(),
            created: None,
            stack: Vec::new(),
            name: None,
            file: None,
            creator: FileCreator::default(),
            writers: Writers::default(),
        }
    }

    /// Stops the writer threads and removes the tree.
    ///
    /// # Errors
    /// Fails if the file system refuses, or if the tree is no longer in its place.
    pub fn abort(&mut self) -> Result {
        self.writers.cancel();
        if self.created.is_none() {
            return Ok(());
        }
        self.check_place()?;
        remove_from(fd_of(&self.parent), &self.root, &self.path())
    }

    /// Returns the result of parsing the NAR, after [`Self::abort`] if it is an error.
    ///
    /// # Errors
    /// Returns that error; if the tree cannot be removed either, both.
    pub fn abort_on_error<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.abort().context(|| error.to_string())?;
        }
        result
    }

    /// Returns the directory of the current entry.
    fn current_dir(&self) -> Parent {
        self.stack.last().or(self.parent.as_ref()).cloned()
    }

    /// Returns the name of the current entry in [`Self::current_dir`].
    fn target(&self) -> &[u8] {
        self.name.as_deref().unwrap_or_else(|| self.root.as_bytes())
    }

    fn path(&self) -> PathBuf {
        path_of(&self.parent, self.root.as_bytes())
    }

    fn error(&self, error: Errno) -> Error {
        unpack_error(&self.current_dir(), self.target(), error)
    }

    /// Returns the error for an entry that cannot be created.
    fn creation_error(&self, error: Errno) -> Error {
        // The directory of the entry is new, and the parser refuses duplicate names.
        if error == Errno::EXIST && !self.stack.is_empty() {
            let path = path_of(&self.current_dir(), self.target());
            let reason = "the file system does not distinguish this name from another name in the NAR";
            return Error::refused(format!("cannot unpack {}: {reason}", path.display()))
                .with_hint("pass --case-hack to rename files whose names differ only in case");
        }
        self.error(error)
    }

    fn root_id(&self) -> Result<FileId, Errno> {
        let stat = rustix::fs::statat(fd_of(&self.parent), &self.root, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileId(stat.st_dev, stat.st_ino))
    }

    /// Remembers the root when it has been created.
    fn record_created(&mut self) -> Result {
        if self.created.is_none() {
            self.created = Some(self.root_id().map_err(|error| self.error(error))?);
        }
        Ok(())
    }

    /// Checks that the root of the tree is still in the place where it was created.
    fn check_place(&self) -> Result {
        if self.root_id().ok() == self.created {
            return Ok(());
        }
        let path = self.path();
        let path = path.display();
        Err(Error::failed(format!(
            "{path} was moved or replaced while it was unpacked: what was moved was not removed"
        )))
    }
}

impl Visitor for Restorer {
    fn directory(&mut self) -> Result {
        let parent = self.current_dir();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::mkdirat(fd_of(&parent), self.target(), Mode::from_raw_mode(0o700))
            .map_err(|error| self.creation_error(error))?;
        self.record_created()?;
        let fd = rustix::fs::openat(fd_of(&parent), self.target(), flags, Mode::empty()).map_err(|e| self.error(e))?;
        let path = path_of(&parent, self.target());
        self.stack.push(Arc::new(OpenDir::new(fd, path)));
        self.name = None;
        Ok(())
    }

    fn directory_end(&mut self) -> Result {
        // The directory gets its final mode and time when its last file has been written, which may be later.
        release_dir(self.stack.pop())?;
        if self.stack.is_empty() {
            self.writers.finish()?;
            self.check_place()?;
        }
        Ok(())
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        self.name = Some(name.to_vec());
        Ok(())
    }

    fn leave(&mut self) -> Result {
        self.name = None;
        Ok(())
    }

    fn file(&mut self, executable: bool, size: u64, _: u64) -> Result {
        let parent = self.current_dir();
        let name = self.name.as_deref().unwrap_or_else(|| self.root.as_bytes());
        let created = self.creator.create(fd_of(&parent), name, executable);
        let fd = created.map_err(|error| self.creation_error(error))?;
        self.record_created()?;
        self.file = Some(match (self.stack.last(), usize::try_from(size)) {
            (Some(dir), Ok(size)) if size < MAX_BATCH_SIZE => {
                self.writers.add_file(Arc::clone(dir), self.name.take().unwrap_or_default(), fd, size)?;
                CurrentFile::Batched
            }
            _ => CurrentFile::Open(fd),
        });
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result {
        match &self.file {
            Some(CurrentFile::Open(fd)) => write_all(fd, bytes).map_err(|error| self.error(error)),
            Some(CurrentFile::Batched) => {
                self.writers.add_data(bytes);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn file_end(&mut self) -> Result {
        match self.file.take() {
            Some(CurrentFile::Open(fd)) => rustix::fs::futimens(&fd, &MTIME).map_err(|error| self.error(error)),
            Some(CurrentFile::Batched) | None => Ok(()),
        }
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        let parent = self.current_dir();
        rustix::fs::symlinkat(target, fd_of(&parent), self.target()).map_err(|error| self.creation_error(error))?;
        self.record_created()?;
        rustix::fs::utimensat(fd_of(&parent), self.target(), &MTIME, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.error(error))
    }
}
