//! The open directories of a tree that is packed or restored. Files are opened relative to them, so that no symbolic link
//! is followed and no path is resolved twice; the threads at work in a directory share it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::CWD;

use crate::root_dir::OpenDir;

/// The directory that a name is relative to; none for the working directory.
pub(super) type Parent = Option<Arc<OpenDir>>;

pub(super) fn fd_of(parent: &Parent) -> BorrowedFd<'_> {
    parent.as_ref().map_or(CWD, |dir| dir.as_fd())
}

pub(super) fn path_of(parent: &Parent, name: &[u8]) -> PathBuf {
    let name = OsStr::from_bytes(name);
    parent.as_ref().map_or_else(|| PathBuf::from(name), |dir| dir.path().join(name))
}
