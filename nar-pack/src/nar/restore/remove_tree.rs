//! Removes a restored tree, whose directories are not writable.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::root_dir::OpenDir;

/// Removes a tree, also if its directories lack write permission, as those of store objects do. Follows no symbolic link.
///
/// # Errors
/// Fails if the file system refuses. A tree that does not exist is not an error.
pub fn remove_tree(path: &Path) -> Result {
    remove_from(CWD, path.as_os_str(), path)
}

/// Removes the entry `name` of an open directory, as [`remove_tree`] does.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_tree_in(dir: &OpenDir, name: impl AsRef<OsStr>) -> Result {
    remove_from(dir.as_fd(), name.as_ref(), &dir.path().join(name.as_ref()))
}

/// Removes an entry of a directory. `path` is for the error.
pub(super) fn remove_from(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result {
    match remove_at(parent, name.as_bytes()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => {
            let error = std::io::Error::from(error);
            Err(Error::failed(format!("cannot remove {}: {error}", path.display())))
        }
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
