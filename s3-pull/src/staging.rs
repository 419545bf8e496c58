//! The temporary directories of a run, next to the final paths, so that one rename publishes a path.
//!
//! A path is unpacked as `.s3-pull-<run>-<hash part>` and renamed after it has been verified. `.s3-pull-<run>.lock` is
//! locked until the run ends. A later run removes the files of every run whose lock is free.
//!
//! The store directory is opened once, without leaving the root, and everything is done relative to it: nothing is
//! written elsewhere when a symbolic link replaces one of the directories.

use std::io::{self, BufWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::{Restorer, dump_in, dump_undoing_case_hack_in, remove_tree_in};
use nar_pack::regular_file;
use nar_pack::root_dir::{LeavingLinks, OpenDir, RootDir};
use nar_pack::store_path::{StoreDir, StorePath};
use narinfo_gen::hash::{Hasher, Sha256};
use narinfo_gen::narinfo::NarInfo;
use rustix::fs::{
    AtFlags, Dir, FlockOperation, Gid, Mode, OFlags, RenameFlags, Uid, chownat, flock, fstat, openat, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::partial_nar::{PartialNar, remove_abandoned};

const PREFIX: &str = ".s3-pull-";
const LOCK: &str = ".lock";
/// Random characters in the name of a run.
const RUN_LENGTH: usize = 12;
/// Size of the buffer in front of the hash function, in bytes.
const HASH_BUFFER_SIZE: usize = 256 * 1024;

/// The store directory under a root, and the temporary directories of this run in it.
pub struct Staging {
    dir: Arc<OpenDir>,
    run: String,
    _lock: OwnedFd,
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
    /// Changes the owner of the tree `name` in a directory. Symbolic links are not followed.
    fn apply(self, dir: &OpenDir, name: &str) -> Result {
        self.change(dir.as_fd(), name.as_bytes()).map_err(|error| {
            let (error, user, path) = (io::Error::from(error), self.user.as_raw(), dir.path().join(name));
            Error::failed(format!("cannot change the owner of {} to {user}: {error}", path.display()))
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
    /// Creates the store directory below `root` if necessary, removes the files of runs that have ended, and starts a
    /// run.
    ///
    /// # Errors
    /// Fails when the store directory cannot be written, or is not below the root because of a symbolic link.
    pub fn begin(root: &Path, store_dir: &StoreDir) -> Result<Self> {
        let dir = Arc::new(RootDir::create(root)?.create_dir_all(Path::new(store_dir.as_str()))?);
        let context = || format!("cannot prepare {}", dir.path().display());
        remove_stale(&dir).context(context)?;
        loop {
            if let Some(staging) = Self::lock_new_run(&dir).context(context)? {
                return Ok(staging);
            }
        }
    }

    /// Creates and locks the lock file of a new run. Returns none if another run removed it before it was locked.
    fn lock_new_run(dir: &Arc<OpenDir>) -> Result<Option<Self>> {
        let mut name = String::new();
        let create = |path: &Path| -> io::Result<OwnedFd> {
            name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(openat(dir, &name, flags, Mode::from_raw_mode(0o600))?)
        };
        // Only for its names: the file is created, and removed, relative to the directory.
        let builder = &mut tempfile::Builder::new();
        let created = builder.prefix(PREFIX).suffix(LOCK).rand_bytes(RUN_LENGTH).make_in("", create)?;
        let (lock, _) = created.keep().map_err(|error| error.error)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(error) => {
                let _ = unlinkat(dir, &name, AtFlags::empty());
                return Err(io::Error::from(error).into());
            }
        }
        if !fstat(&lock).is_ok_and(|stat| stat.st_nlink == 1) {
            return Ok(None);
        }
        let Some(run) = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(LOCK)) else { return Ok(None) };
        let run = run.to_owned();
        Ok(Some(Self { dir: Arc::clone(dir), run, _lock: lock }))
    }

    /// Opens the file in which the download of a NAR can be continued, if it can be (see [`PartialNar::open`]).
    ///
    /// # Errors
    /// As [`PartialNar::open`].
    pub fn open_partial(&self, narinfo: &NarInfo) -> Result<Option<Arc<PartialNar>>> {
        PartialNar::open(&self.dir, narinfo).map(|partial| partial.map(Arc::new))
    }

    /// Returns whether a path is at its final location.
    #[must_use]
    pub fn is_present(&self, path: &StorePath) -> bool {
        is_present(&self.dir, path)
    }

    /// Returns the final location of a path, for messages.
    #[must_use]
    pub fn place(&self, path: &StorePath) -> PathBuf {
        self.dir.path().join(path.base_name())
    }

    /// Computes the NarHash of a path at its final location. With `undo_case_hack`, files that the case hack renamed have
    /// their original names in the NAR.
    ///
    /// # Errors
    /// Fails if the path cannot be read or is not a tree that a NAR can contain.
    pub fn nar_hash(&self, path: &StorePath, undo_case_hack: bool) -> Result<Sha256> {
        let mut hasher = BufWriter::with_capacity(HASH_BUFFER_SIZE, Hasher::default());
        if undo_case_hack {
            dump_undoing_case_hack_in(&self.dir, path.base_name(), &mut hasher)?;
        } else {
            dump_in(&self.dir, path.base_name(), &mut hasher, &mut |_| {})?;
        }
        let hasher = hasher.into_inner().map_err(|error| Error::from(error.into_error()))?;
        Ok(hasher.finish().0)
    }

    /// Returns the visitor that unpacks a NAR into the temporary directory of its path.
    #[must_use]
    pub fn restorer(&self, path: &StorePath) -> Restorer {
        Restorer::new_in(Arc::clone(&self.dir), self.temporary(path))
    }

    /// Changes the owner of an unpacked path.
    ///
    /// # Errors
    /// Fails when the owner cannot be changed, for example without the permission for it.
    pub fn set_owner(&self, path: &StorePath, owner: Owner) -> Result {
        owner.apply(&self.dir, &self.temporary(path))
    }

    /// Removes the temporary directory of a path.
    ///
    /// # Errors
    /// Fails if the file system refuses.
    pub fn remove_temporary(&self, path: &StorePath) -> Result {
        remove_tree_in(&self.dir, self.temporary(path))
    }

    /// Returns the name of the temporary directory of a path.
    fn temporary(&self, path: &StorePath) -> String {
        // Not the whole name: with the prefix, a long one would exceed the 255 bytes of a file name.
        format!("{PREFIX}{}-{}", self.run, path.hash_part())
    }

    /// Moves an unpacked path to its final location. Never replaces an existing path.
    ///
    /// # Errors
    /// Fails when the path cannot be renamed.
    pub fn publish(&self, path: &StorePath) -> Result<Published> {
        let (dir, from, to) = (&*self.dir, self.temporary(path), path.base_name());
        let existed = || self.remove_temporary(path).map(|()| Published::Existed);
        let renamed = match renameat_with(dir, &from, dir, to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST | Errno::NOTEMPTY) => return existed(),
            // The file system does not support the flag. Another process may create the path between check and rename.
            Err(Errno::INVAL | Errno::NOSYS) if self.is_present(path) => return existed(),
            Err(Errno::INVAL | Errno::NOSYS) => renameat(dir, &from, dir, to),
            result => result,
        };
        renamed.map_err(io::Error::from).context(|| format!("cannot move to {}", self.place(path).display()))?;
        Ok(Published::New)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Files that cannot be removed now are removed by the next run.
        let _ = remove_run(&self.dir, &self.run);
    }
}

/// Opens the store directory below a root for reading, if it exists.
///
/// # Errors
/// Fails if it cannot be read, or is not below the root because of a symbolic link.
pub fn open_existing(root: &Path, store_dir: &StoreDir) -> Result<Option<OpenDir>> {
    if root.symlink_metadata().is_err() {
        return Ok(None);
    }
    RootDir::open(root)?.open_dir(Path::new(store_dir.as_str()), LeavingLinks::Refuse)
}

/// Returns whether a path exists in a store directory, even as a dangling symbolic link.
#[must_use]
pub fn is_present(dir: &OpenDir, path: &StorePath) -> bool {
    statat(dir, path.base_name(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn remove_stale(dir: &OpenDir) -> Result {
    let names = staging_names(dir)?;
    remove_abandoned(dir, &names);
    for name in names {
        let Some(run) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(LOCK)) else { continue };
        match regular_file::open_at(dir, &name, OFlags::RDONLY).map_err(Error::from) {
            Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() => remove_run(dir, run)?,
            Err(error) if error.is_refusal() => {
                let path = dir.path().join(&name);
                return Err(Error::failed(format!("the lock file {} is {error}", path.display()))
                    .with_hint(format!("remove {}", path.display())));
            }
            // The run is active, or another process has removed the file, or it belongs to another user.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// Removes the temporary directories of a run, then its lock.
fn remove_run(dir: &OpenDir, run: &str) -> Result {
    let prefix = format!("{PREFIX}{run}-");
    for name in staging_names(dir)?.iter().filter(|name| name.starts_with(&prefix)) {
        remove_tree_in(dir, name)?;
    }
    match unlinkat(dir, format!("{PREFIX}{run}{LOCK}"), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Returns the names of all temporary directories, locks and partial downloads in a store directory.
fn staging_names(dir: &OpenDir) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(io::Error::from)? {
        let entry = entry.map_err(io::Error::from)?;
        if let Ok(name) = entry.file_name().to_str()
            && name.starts_with(PREFIX)
        {
            names.push(name.to_owned());
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
        let root = tempfile::tempdir().unwrap();
        let store_dir = StoreDir::new("/nix/store").unwrap();
        let path = StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap();
        let active = Staging::begin(root.path(), &store_dir).unwrap();
        let at = |name: &str| root.path().join("nix/store").join(name);
        std::fs::write(at(&active.temporary(&path)), "active").unwrap();
        std::fs::write(at(".s3-pull-ended.lock"), "").unwrap();
        std::fs::create_dir(at(".s3-pull-ended-x")).unwrap();
        let other = Staging::begin(root.path(), &store_dir).unwrap();
        assert!(!at(".s3-pull-ended-x").exists());
        assert!(!at(".s3-pull-ended.lock").exists());
        assert_eq!(active.publish(&path).unwrap(), Published::New);
        std::fs::write(at(&other.temporary(&path)), "other").unwrap();
        assert_eq!(other.publish(&path).unwrap(), Published::Existed);
        assert_eq!(std::fs::read_to_string(other.place(&path)).unwrap(), "active");
        let dir = Arc::clone(&active.dir);
        drop((active, other));
        assert_eq!(staging_names(&dir).unwrap(), Vec::<String>::new());
    }
}
