//! The temporary directories of a run, next to the final paths, so that one rename publishes a path.
//!
//! A path is unpacked as `.s3-pull-<run>-<base name>` and renamed after it has been verified. `.s3-pull-<run>.lock` is
//! locked until the run ends. A later run removes the files of every run whose lock is free.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::remove_tree;
use nar_pack::regular_file;
use nar_pack::store_path::StorePath;
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Gid, Mode, OFlags, RenameFlags, Uid, chownat, flock, openat, renameat_with,
};
use rustix::io::Errno;

const PREFIX: &str = ".s3-pull-";
const LOCK: &str = ".lock";

/// The store directory under a root, and the temporary directories of this run in it.
pub struct Staging {
    store: PathBuf,
    run: String,
    _lock: File,
}

/// The owner of unpacked files, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    user: Uid,
    group: Option<Gid>,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        // The kernel does not change an owner of u32::MAX.
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
        let invalid = || "expected numbers: UID or UID:GID".to_owned();
        let group = group.map(|group| number(group).map(Gid::from_raw).ok_or_else(invalid)).transpose()?;
        Ok(Self { user: Uid::from_raw(number(user).ok_or_else(invalid)?), group })
    }
}

impl Owner {
    /// Changes the owner of a tree. Symbolic links are not followed.
    ///
    /// # Errors
    /// Fails when the owner cannot be changed, for example without the permission for it.
    pub fn apply(self, tree: &Path) -> Result {
        self.change(CWD, tree.as_os_str().as_bytes()).map_err(|error| {
            let (error, user) = (io::Error::from(error), self.user.as_raw());
            Error::failed(format!("cannot change the owner of {} to {user}: {error}", tree.display()))
        })
    }

    /// Changes an entry relative to its open directory, because a full path may exceed `PATH_MAX`.
    fn change(self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        chownat(parent, name, Some(self.user), self.group, AtFlags::SYMLINK_NOFOLLOW)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match openat(parent, name, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                self.change(dir.as_fd(), name)?;
            }
        }
        Ok(())
    }
}

/// The result of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The path is new.
    New,
    /// The path was created by another process in the meantime, and was kept.
    Existed,
}

impl Staging {
    /// Creates the store directory if necessary, removes the files of runs that have ended, and starts a run.
    ///
    /// # Errors
    /// Fails when the store directory cannot be written.
    pub fn begin(store: &Path) -> Result<Self> {
        let context = || format!("cannot prepare {}", store.display());
        std::fs::create_dir_all(store).map_err(Error::from).context(context)?;
        remove_stale(store).context(context)?;
        loop {
            if let Some(staging) = Self::lock_new_run(store).context(context)? {
                return Ok(staging);
            }
        }
    }

    /// Creates and locks the lock file of a new run. Returns none if another run removed it before it was locked.
    fn lock_new_run(store: &Path) -> Result<Option<Self>> {
        let lock = tempfile::Builder::new().prefix(PREFIX).suffix(LOCK).rand_bytes(12).tempfile_in(store)?;
        let (file, path) = lock.keep().map_err(|error| error.error)?;
        let locked = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(Errno::WOULDBLOCK | Errno::INTR) => false,
            Err(error) => {
                let _ = std::fs::remove_file(&path);
                return Err(io::Error::from(error).into());
            }
        };
        if !locked || !file.metadata().is_ok_and(|meta| meta.nlink() == 1) {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let run = name.trim_start_matches(PREFIX).trim_end_matches(LOCK).to_owned();
        Ok(Some(Self { store: store.to_owned(), run, _lock: file }))
    }

    /// Returns the final location of a path.
    #[must_use]
    pub fn place(&self, path: &StorePath) -> PathBuf {
        self.store.join(path.base_name())
    }

    /// Returns the temporary directory of a path.
    #[must_use]
    pub fn temporary(&self, path: &StorePath) -> PathBuf {
        self.store.join(format!("{PREFIX}{}-{path}", self.run))
    }

    /// Moves an unpacked path to its final location. Never replaces an existing path.
    ///
    /// # Errors
    /// Fails when the path cannot be renamed.
    pub fn publish(&self, path: &StorePath) -> Result<Published> {
        let (from, to) = (self.temporary(path), self.place(path));
        let context = || format!("cannot move to {}", to.display());
        match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Published::New),
            Err(Errno::EXIST | Errno::NOTEMPTY) => remove_tree(&from).map(|()| Published::Existed),
            // The file system does not support the flag. Another process may create the path between check and rename.
            Err(Errno::INVAL | Errno::NOSYS) if !exists(&to) => {
                std::fs::rename(&from, &to).context(context)?;
                Ok(Published::New)
            }
            Err(Errno::INVAL | Errno::NOSYS) => remove_tree(&from).map(|()| Published::Existed),
            Err(error) => Err(io::Error::from(error)).context(context),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Files that cannot be removed now are removed by the next run.
        let _ = remove_run(&self.store, &self.run);
    }
}

/// Returns whether a path exists, even as a dangling symbolic link.
#[must_use]
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn remove_stale(store: &Path) -> Result {
    let dir = File::open(store)?;
    for name in staging_names(store)? {
        let Some(run) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(LOCK)) else { continue };
        match regular_file::open_at(&dir, &name, OFlags::RDONLY).map_err(Error::from) {
            Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() => remove_run(store, run)?,
            // The run is active.
            Ok(_) => {}
            Err(error) if error.is_refusal() => {
                let path = store.join(&name);
                return Err(Error::failed(format!("the lock file {} is {error}", path.display()))
                    .with_hint(format!("remove {}", path.display())));
            }
            // Another process removed it, or it belongs to another user.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Removes the temporary directories of a run, then its lock.
fn remove_run(store: &Path, run: &str) -> Result {
    let prefix = format!("{PREFIX}{run}-");
    for name in staging_names(store)?.iter().filter(|name| name.starts_with(&prefix)) {
        remove_tree(&store.join(name))?;
    }
    match std::fs::remove_file(store.join(format!("{PREFIX}{run}{LOCK}"))) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns the names of all temporary directories and locks in a store directory.
fn staging_names(store: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(store)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(PREFIX)
        {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers() {
        assert_eq!("0".parse(), Ok(Owner { user: Uid::ROOT, group: None }));
        assert_eq!("0:0".parse(), Ok(Owner { user: Uid::ROOT, group: Some(Gid::ROOT) }));
        for invalid in ["", "root", "0:", ":0", "-1", "4294967295", "1:2:3", "99999999999"] {
            assert!(invalid.parse::<Owner>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn files_of_an_ended_run_are_removed_and_those_of_an_active_run_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap();
        let active = Staging::begin(dir.path()).unwrap();
        std::fs::write(active.temporary(&path), "active").unwrap();
        std::fs::write(dir.path().join(".s3-pull-ended.lock"), "").unwrap();
        std::fs::create_dir(dir.path().join(".s3-pull-ended-x")).unwrap();
        let other = Staging::begin(dir.path()).unwrap();
        assert!(!dir.path().join(".s3-pull-ended-x").exists());
        assert!(!dir.path().join(".s3-pull-ended.lock").exists());
        assert_eq!(active.publish(&path).unwrap(), Published::New);
        std::fs::write(other.temporary(&path), "other").unwrap();
        assert_eq!(other.publish(&path).unwrap(), Published::Existed);
        assert_eq!(std::fs::read_to_string(other.place(&path)).unwrap(), "active");
        drop((active, other));
        assert_eq!(staging_names(dir.path()).unwrap(), Vec::<String>::new());
    }
}
