//! Removes a restored tree, whose directories are not writable.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Removes a tree, also if its directories lack write permission, as those of store objects do. Follows no symbolic link.
///
/// # Errors
/// Fails if the file system refuses. A tree that does not exist is not an error.
pub fn remove_tree(path: &Path) -> Result {
    match remove_at(CWD, path.as_os_str().as_bytes()) {
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
