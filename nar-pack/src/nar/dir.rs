//! The open directories of a tree that is packed or restored; several threads work in them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::CWD;

/// A directory, open until nothing is left to be done in it.
pub(super) struct Dir {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

/// What a name is relative to: a directory of the tree; none for the tree itself.
pub(super) type Parent = Option<Arc<Dir>>;

pub(super) fn fd_of(parent: &Parent) -> BorrowedFd<'_> {
    parent.as_ref().map_or(CWD, |dir| dir.fd.as_fd())
}

pub(super) fn path_of(parent: &Parent, name: &[u8]) -> PathBuf {
    let name = OsStr::from_bytes(name);
    parent.as_ref().map_or_else(|| PathBuf::from(name), |dir| dir.path.join(name))
}

/// What a thread that died held is as it left it, and its death is told otherwise.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
