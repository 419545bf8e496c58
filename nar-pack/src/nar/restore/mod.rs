//! Restores a NAR as a file tree. Everything is created relative to open directories, so that no symbolic link is ever
//! followed. The calling thread reads the NAR and creates files and directories; the contents of small files are left to
//! [`writers`]. An incomplete tree is removed.

mod remove_tree;
mod writers;

use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

pub use self::remove_tree::remove_tree;
use self::writers::{FileCreator, MAX_BATCH_SIZE, MTIME, Writers, release_dir, unpack_error, write_all};
use super::open_dir::{OpenDir, Parent, fd_of, path_of};
use super::{Visitor, parse};
use crate::error::{Context as _, Error, Result};

/// Restores a NAR as `path`, which must not exist, with the modes 0444 and 0555 and the modification times of a store
/// object. Returns the size of the NAR in bytes. Removes an incomplete tree.
///
/// # Errors
/// Refuses a malformed NAR; fails if `path` exists or the file system refuses.
pub fn restore(input: &mut impl BufRead, path: &Path) -> Result<u64> {
    let mut restorer = Restorer::new(path);
    let result = parse(input, &mut restorer);
    restorer.abort_on_error(result)
}

/// The visitor behind [`restore`]. The tree is complete when the visitor has returned from the end of the root: small
/// files may be written later than the calls for them.
pub struct Restorer {
    root: PathBuf,
    /// Whether the root was created, and has to be removed on an error.
    created_root: bool,
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

impl Restorer {
    /// Creates a visitor that restores a NAR as `path`, which must not exist.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            root: path.to_owned(),
            created_root: false,
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
    /// Fails if the file system refuses.
    pub fn abort(&mut self) -> Result {
        self.writers.cancel();
        if self.created_root { remove_tree(&self.root) } else { Ok(()) }
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

    fn parent(&self) -> Parent {
        self.stack.last().cloned()
    }

    fn target(&self) -> &[u8] {
        self.name.as_deref().unwrap_or_else(|| self.root.as_os_str().as_bytes())
    }

    fn error(&self, error: Errno) -> Error {
        unpack_error(&self.parent(), self.target(), error)
    }
}

impl Visitor for Restorer {
    fn directory(&mut self) -> Result {
        let parent = self.parent();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::mkdirat(fd_of(&parent), self.target(), Mode::from_raw_mode(0o700)).map_err(|e| self.error(e))?;
        self.created_root = true;
        let fd = rustix::fs::openat(fd_of(&parent), self.target(), flags, Mode::empty()).map_err(|e| self.error(e))?;
        let path = path_of(&parent, self.target());
        self.stack.push(Arc::new(OpenDir { fd, path }));
        self.name = None;
        Ok(())
    }

    fn directory_end(&mut self) -> Result {
        // The directory gets its final mode and time when its last file has been written, which may be later.
        release_dir(self.stack.pop())?;
        if self.stack.is_empty() { self.writers.finish() } else { Ok(()) }
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
        let parent = self.parent();
        let name = self.name.as_deref().unwrap_or_else(|| self.root.as_os_str().as_bytes());
        let created = self.creator.create(fd_of(&parent), name, executable);
        let fd = created.map_err(|error| unpack_error(&parent, name, error))?;
        self.created_root = true;
        self.file = Some(match (parent, usize::try_from(size)) {
            (Some(dir), Ok(size)) if size < MAX_BATCH_SIZE => {
                self.writers.add_file(dir, self.name.take().unwrap_or_default(), fd, size)?;
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
        let parent = self.parent();
        rustix::fs::symlinkat(target, fd_of(&parent), self.target()).map_err(|error| self.error(error))?;
        self.created_root = true;
        rustix::fs::utimensat(fd_of(&parent), self.target(), &MTIME, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.error(error))
    }
}
