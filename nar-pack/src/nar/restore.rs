//! A NAR to a file tree, relative to open directories, so that no symbolic link is ever followed.

use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::dir::{Dir, Parent, fd_of, path_of};
use super::writers::{BATCH, MTIME, Maker, Writers, failed, release, write_all};
use super::{Visitor, parse};
use crate::error::{Error, Result};

/// Restores a NAR as `path`, which must not exist, with the modes 0444 and 0555 and the times of a store object;
/// returns the NAR's size in bytes. When it fails, what it had made is removed.
///
/// # Errors
/// Refuses a malformed NAR; fails where the file system does, and where `path` exists.
pub fn restore(input: &mut impl BufRead, path: &Path) -> Result<u64> {
    let mut restorer = Restorer::new(path);
    let result = parse(input, &mut restorer);
    if let Err(failure) = &result {
        restorer.undo().map_err(|left| left.context(failure))?;
    }
    result
}

/// The visitor behind [`restore`]. Other threads fill the small files of a large tree; all of it is there when the root
/// has been seen to its end.
pub struct Restorer {
    root: PathBuf,
    made_root: bool,
    /// The directories from the root to the one at hand.
    stack: Vec<Arc<Dir>>,
    /// The entry at hand within the innermost directory; none for the root.
    name: Option<Vec<u8>>,
    file: Option<Contents>,
    maker: Maker,
    writers: Writers,
}

/// Where the bytes of the file at hand go.
enum Contents {
    Gathered,
    Written(OwnedFd),
}

impl Restorer {
    /// Restores as `path`, which must not exist.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            root: path.to_owned(),
            made_root: false,
            stack: Vec::new(),
            name: None,
            file: None,
            maker: Maker::default(),
            writers: Writers::default(),
        }
    }

    /// Removes what was made.
    ///
    /// # Errors
    /// Fails where the file system does.
    pub fn undo(&mut self) -> Result {
        self.writers.give_up();
        if self.made_root { remove_tree(&self.root) } else { Ok(()) }
    }

    fn parent(&self) -> Parent {
        self.stack.last().cloned()
    }

    fn target(&self) -> &[u8] {
        self.name.as_deref().unwrap_or_else(|| self.root.as_os_str().as_bytes())
    }

    fn failed(&self, error: Errno) -> Error {
        failed(&self.parent(), self.target(), error)
    }

    /// Notes that the root is ours, and to be removed on failure, once the first node is made.
    fn made(&mut self) {
        self.made_root = true;
    }
}

impl Visitor for Restorer {
    fn directory(&mut self) -> Result {
        let parent = self.parent();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::mkdirat(fd_of(&parent), self.target(), Mode::from_raw_mode(0o700)).map_err(|e| self.failed(e))?;
        self.made();
        let fd = rustix::fs::openat(fd_of(&parent), self.target(), flags, Mode::empty()).map_err(|e| self.failed(e))?;
        let path = path_of(&parent, self.target());
        self.stack.push(Arc::new(Dir { fd, path }));
        self.name = None;
        Ok(())
    }

    fn directory_end(&mut self) -> Result {
        // It is left as it shall be when its last file is made, which may be later.
        release(self.stack.pop())?;
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
        let fd = self.maker.create(fd_of(&parent), name, executable).map_err(|error| failed(&parent, name, error))?;
        self.made();
        self.file = Some(match (parent, usize::try_from(size)) {
            (Some(dir), Ok(size)) if size < BATCH => {
                self.writers.file(dir, self.name.take().unwrap_or_default(), fd, size)?;
                Contents::Gathered
            }
            _ => Contents::Written(fd),
        });
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result {
        match &self.file {
            Some(Contents::Written(fd)) => write_all(fd, bytes).map_err(|error| self.failed(error)),
            Some(Contents::Gathered) => {
                self.writers.data(bytes);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn file_end(&mut self) -> Result {
        match self.file.take() {
            Some(Contents::Written(fd)) => rustix::fs::futimens(&fd, &MTIME).map_err(|error| self.failed(error)),
            Some(Contents::Gathered) | None => Ok(()),
        }
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        let parent = self.parent();
        rustix::fs::symlinkat(target, fd_of(&parent), self.target()).map_err(|error| self.failed(error))?;
        self.made();
        rustix::fs::utimensat(fd_of(&parent), self.target(), &MTIME, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.failed(error))
    }
}

/// Removes a tree that has directories without write permission, as store objects do. No symbolic link is followed.
///
/// # Errors
/// Fails with the path where the file system refuses; a tree that is not there is no error.
pub fn remove_tree(path: &Path) -> Result {
    let failed = |error: Errno| Error::failed(format!("removing {}: {}", path.display(), std::io::Error::from(error)));
    match remove_at(CWD, path.as_os_str().as_bytes()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn remove_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return rustix::fs::unlinkat(parent, name, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o700))?;
    let names: Vec<Vec<u8>> = rustix::fs::Dir::read_from(&fd)?
        .map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()))
        .collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !matches!(name.as_slice(), b"." | b"..")) {
        remove_at(fd.as_fd(), name)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
