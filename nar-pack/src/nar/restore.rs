//! A NAR to a file tree, relative to open directories, so that no symbolic link is ever followed.

use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{Visitor, parse};
use crate::stage::{Failure, Outcome};

/// Store objects are dated one second after the epoch (Nix's `canonicalisePathMetaData`).
const MTIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

/// Restores a NAR as `path`, which must not exist, with the modes 0444 and 0555 and the times of a store object;
/// returns the NAR's size in bytes. When it fails, what it had made is removed.
///
/// # Errors
/// Refuses a malformed NAR; fails where the file system does, and where `path` exists.
pub fn restore(input: &mut impl BufRead, path: &Path) -> Outcome<u64> {
    let mut restorer = Restorer::new(path);
    let result = parse(input, &mut restorer);
    if result.is_err() {
        restorer.undo()?;
    }
    result
}

/// The visitor behind [`restore`].
pub struct Restorer {
    root: PathBuf,
    made_root: bool,
    /// The directories from the root to the one at hand, with their names.
    stack: Vec<Level>,
    /// The entry at hand within the innermost directory; none for the root.
    name: Option<Vec<u8>>,
    file: Option<File>,
    /// Whether a file gets the mode that it is made with: seen at the first plain and at the first executable one,
    /// because umask and default ACLs do to the others what they do to these.
    made_with_mode: [Option<bool>; 2],
}

struct Level {
    fd: OwnedFd,
    name: Option<Vec<u8>>,
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
            made_with_mode: [None; 2],
        }
    }

    /// Removes what was made.
    ///
    /// # Errors
    /// Fails where the file system does.
    pub fn undo(&self) -> Outcome {
        if self.made_root { remove_tree(&self.root) } else { Ok(()) }
    }

    fn parent(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(CWD, |level| level.fd.as_fd())
    }

    fn target(&self) -> &[u8] {
        self.name.as_deref().unwrap_or_else(|| self.root.as_os_str().as_bytes())
    }

    fn failed(&self, error: Errno) -> Failure {
        let mut path = self.root.clone();
        let names = self.stack.iter().filter_map(|level| level.name.as_deref()).chain(self.name.as_deref());
        path.extend(names.map(std::ffi::OsStr::from_bytes));
        // The parser lets no name come twice, and the directory is new.
        if error == Errno::EXIST && !self.stack.is_empty() {
            return Failure::refused(format!(
                "unpacking {}: the file system takes this name and another one of the NAR for the same",
                path.display()
            ));
        }
        Failure::failed(format!("unpacking {}: {}", path.display(), std::io::Error::from(error)))
    }

    /// Gives a file that was just made its mode, unless it has it already.
    fn set_mode(&mut self, fd: &OwnedFd, executable: bool, mode: Mode) -> Result<(), Errno> {
        let seen = &mut self.made_with_mode[usize::from(executable)];
        let has_it = match *seen {
            Some(has_it) => has_it,
            None => *seen.insert(Mode::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == mode),
        };
        if has_it { Ok(()) } else { rustix::fs::fchmod(fd, mode) }
    }

    /// Notes that the root is ours, and to be removed on failure, once the first node is made.
    fn made(&mut self) {
        self.made_root = true;
    }
}

impl Visitor for Restorer {
    fn directory(&mut self) -> Outcome {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::mkdirat(self.parent(), self.target(), Mode::from_raw_mode(0o700)).map_err(|e| self.failed(e))?;
        self.made();
        let fd = rustix::fs::openat(self.parent(), self.target(), flags, Mode::empty()).map_err(|e| self.failed(e))?;
        let name = self.name.take();
        self.stack.push(Level { fd, name });
        Ok(())
    }

    fn directory_end(&mut self) -> Outcome {
        if let Some(level) = self.stack.last() {
            rustix::fs::fchmod(&level.fd, Mode::from_raw_mode(0o555))
                .and_then(|()| rustix::fs::futimens(&level.fd, &MTIME))
                .map_err(|error| self.failed(error))?;
        }
        self.name = self.stack.pop().and_then(|level| level.name);
        Ok(())
    }

    fn enter(&mut self, name: &[u8]) -> Outcome {
        self.name = Some(name.to_vec());
        Ok(())
    }

    fn leave(&mut self) -> Outcome {
        self.name = None;
        Ok(())
    }

    fn file(&mut self, executable: bool, _: u64, _: u64) -> Outcome {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(if executable { 0o555 } else { 0o444 });
        let fd = rustix::fs::openat(self.parent(), self.target(), flags, mode).map_err(|error| self.failed(error))?;
        self.made();
        self.set_mode(&fd, executable, mode).map_err(|error| self.failed(error))?;
        self.file = Some(File::from(fd));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Outcome {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        written.map_err(|error| self.failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    fn file_end(&mut self) -> Outcome {
        match self.file.take() {
            Some(file) => rustix::fs::futimens(&file, &MTIME).map_err(|error| self.failed(error)),
            None => Ok(()),
        }
    }

    fn symlink(&mut self, target: &[u8]) -> Outcome {
        rustix::fs::symlinkat(target, self.parent(), self.target()).map_err(|error| self.failed(error))?;
        self.made();
        rustix::fs::utimensat(self.parent(), self.target(), &MTIME, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.failed(error))
    }
}

/// Removes a tree that has directories without write permission, as store objects do. No symbolic link is followed.
///
/// # Errors
/// Fails with the path where the file system refuses; a tree that is not there is no error.
pub fn remove_tree(path: &Path) -> Outcome {
    let failed =
        |error: Errno| Failure::failed(format!("removing {}: {}", path.display(), std::io::Error::from(error)));
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
    let names: Vec<Vec<u8>> = Dir::read_from(&fd)?
        .map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()))
        .collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !matches!(name.as_slice(), b"." | b"..")) {
        remove_at(fd.as_fd(), name)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
