//! Unpacking next to the final place, and moving there by one rename.
//!
//! What a run unpacks is called `.s3-pull-<run>-<base name>` until it is checked, and `.s3-pull-<run>.lock` is locked as
//! long as the run lives. A later run removes what belongs to a lock that nobody holds.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::remove_tree;
use nar_pack::store_path::StorePath;
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Gid, Mode, OFlags, RenameFlags, Uid, chownat, flock, openat, renameat_with,
};
use rustix::io::Errno;

const PREFIX: &str = ".s3-pull-";
const LOCK: &str = ".lock";

/// The store directory below a root, with this run's temporaries in it.
pub struct Staging {
    store: PathBuf,
    run: String,
    _lock: File,
}

/// Whom files are given to.
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
        // The largest number means "leave it as it is" to the kernel.
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
        let wrong = || "expected UID or UID:GID, in numbers".to_owned();
        let group = group.map(|group| number(group).map(Gid::from_raw).ok_or_else(wrong)).transpose()?;
        Ok(Self { user: Uid::from_raw(number(user).ok_or_else(wrong)?), group })
    }
}

impl Owner {
    /// Gives a tree to this owner, links themselves instead of what they point to.
    ///
    /// # Errors
    /// Fails where the file system does, as where one is not allowed to give files away.
    pub fn take(self, tree: &Path) -> Result {
        self.give(CWD, tree.as_os_str().as_bytes()).map_err(|error| {
            let error = io::Error::from(error);
            Error::failed(format!("giving {} to {}: {error}", tree.display(), self.user.as_raw()))
        })
    }

    /// Relative to open directories, as it was unpacked: the whole of a path may be too long for one call.
    fn give(self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
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
                self.give(dir.as_fd(), name)?;
            }
        }
        Ok(())
    }
}

/// What became of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The path is new.
    New,
    /// Somebody else was faster; theirs stays.
    Existed,
}

impl Staging {
    /// Makes the store directory if need be, removes what dead runs left, and begins a run.
    ///
    /// # Errors
    /// Fails where the file system does.
    pub fn begin(store: &Path) -> Result<Self> {
        let at = || format!("preparing {}", store.display());
        std::fs::create_dir_all(store).map_err(Error::from).context(at)?;
        remove_stale(store).context(at)?;
        loop {
            let lock = tempfile::Builder::new()
                .prefix(PREFIX)
                .suffix(LOCK)
                .rand_bytes(12)
                .tempfile_in(store)
                .map_err(Error::from)
                .context(at)?;
            let (file, path) = lock.keep().map_err(|error| Error::from(error.error)).context(at)?;
            let locked = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => true,
                Err(Errno::WOULDBLOCK | Errno::INTR) => false,
                Err(error) => {
                    let _ = std::fs::remove_file(&path);
                    return Err(Error::from(io::Error::from(error)).context(at()));
                }
            };
            // Another run may have taken the file for a dead one's before it was locked.
            if locked && file.metadata().is_ok_and(|meta| meta.nlink() == 1) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let run = name.trim_start_matches(PREFIX).trim_end_matches(LOCK).to_owned();
                return Ok(Self { store: store.to_owned(), run, _lock: file });
            }
        }
    }

    /// The final place of a path.
    #[must_use]
    pub fn place(&self, path: &StorePath) -> PathBuf {
        self.store.join(path.base_name())
    }

    /// Where a path is unpacked.
    #[must_use]
    pub fn temporary(&self, path: &StorePath) -> PathBuf {
        self.store.join(format!("{PREFIX}{}-{path}", self.run))
    }

    /// Moves an unpacked path to its final place, never over another.
    ///
    /// # Errors
    /// Fails where the file system does.
    pub fn publish(&self, path: &StorePath) -> Result<Placed> {
        let (from, to) = (self.temporary(path), self.place(path));
        let failed = |error: Errno| Error::failed(format!("moving to {}: {}", to.display(), io::Error::from(error)));
        match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Placed::New),
            Err(Errno::EXIST | Errno::NOTEMPTY) => remove_tree(&from).map(|()| Placed::Existed),
            // A file system without this flag: the gap between the look and the rename is as small as can be.
            Err(Errno::INVAL | Errno::NOSYS) if !exists(&to) => {
                std::fs::rename(&from, &to).map_err(Error::from).context(|| format!("moving to {}", to.display()))?;
                Ok(Placed::New)
            }
            Err(Errno::INVAL | Errno::NOSYS) => remove_tree(&from).map(|()| Placed::Existed),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        let _ = remove_run(&self.store, &self.run);
    }
}

/// Whether something is there, be it a dangling link.
#[must_use]
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn remove_stale(store: &Path) -> Result {
    for name in names(store)? {
        let Some(run) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(LOCK)) else { continue };
        let Ok(lock) = OpenOptions::new().read(true).open(store.join(&name)) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_run(store, run)?;
        }
    }
    Ok(())
}

/// Removes the temporaries of a run, and last its lock.
fn remove_run(store: &Path, run: &str) -> Result {
    let own = format!("{PREFIX}{run}-");
    for name in names(store)?.iter().filter(|name| name.starts_with(&own)) {
        remove_tree(&store.join(name))?;
    }
    match std::fs::remove_file(store.join(format!("{PREFIX}{run}{LOCK}"))) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn names(store: &Path) -> Result<Vec<String>> {
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
        for wrong in ["", "root", "0:", ":0", "-1", "4294967295", "1:2:3", "99999999999"] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dead_run_is_cleaned_up_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap();
        let living = Staging::begin(dir.path()).unwrap();
        std::fs::write(living.temporary(&path), "living").unwrap();
        std::fs::write(dir.path().join(".s3-pull-dead.lock"), "").unwrap();
        std::fs::create_dir(dir.path().join(".s3-pull-dead-x")).unwrap();
        let other = Staging::begin(dir.path()).unwrap();
        assert!(!dir.path().join(".s3-pull-dead-x").exists());
        assert!(!dir.path().join(".s3-pull-dead.lock").exists());
        assert_eq!(living.publish(&path).unwrap(), Placed::New);
        std::fs::write(other.temporary(&path), "other").unwrap();
        assert_eq!(other.publish(&path).unwrap(), Placed::Existed);
        assert_eq!(std::fs::read_to_string(other.place(&path)).unwrap(), "living");
        drop((living, other));
        assert_eq!(names(dir.path()).unwrap(), Vec::<String>::new());
    }
}
