//! Reads a nix.conf, and atomically replaces it by the text that `merge` makes, with the same mode and owner. Processes
//! that edit files of the same directory wait for each other.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nar_pack::access_list;
use nar_pack::error::{Context, Error, Result};
use nar_pack::regular_file;
use nar_pack::stdio::read_limited;
use rustix::fs::XattrFlags;

/// Maximum size of a nix.conf in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;
/// The mode of a new nix.conf.
const NEW_FILE_MODE: u32 = 0o644;

/// Reads a file, if it exists.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(target) = resolve_links(path)? else { return Ok(None) };
    let file = regular_file::open(&target).map_err(Error::from);
    let bytes = file.and_then(|mut file| read_limited(&mut file, MAX_FILE_SIZE));
    bytes.map(Some).context(|| format!("cannot read {}", path.display()))
}

/// Replaces the contents of a file by the result of `change` and returns whether they changed. Creates the file if it
/// does not exist. The errors of `change` must name the file.
pub(super) fn edit_file(path: &Path, change: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<bool> {
    let cannot_write = || format!("cannot write {}", path.display());
    let target = resolve_links(path)?.unwrap_or_else(|| path.to_owned());
    require_outside_store(&target).context(cannot_write)?;
    let locked = LockedFile::lock(&target).map_err(Error::from).context(cannot_write)?;
    // Another process may have created or changed the file before this one got the lock.
    let text = read_file(path)?.unwrap_or_default();
    let changed = change(&text)?;
    if changed == text {
        return Ok(false);
    }
    locked.replace(&changed).map_err(Error::from).context(cannot_write)?;
    Ok(true)
}

/// Refuses a file of the store: NixOS and others link nix.conf to one, and a store path must not change.
fn require_outside_store(target: &Path) -> Result {
    let store_dirs = [env::var_os("NIX_STORE_DIR").unwrap_or_default(), "/nix/store".into()];
    // The target is canonical, unless it does not exist. A directory that does not exist contains nothing.
    let is_inside = |dir: &OsString| {
        !dir.is_empty() && (target.starts_with(dir) || fs::canonicalize(dir).is_ok_and(|dir| target.starts_with(dir)))
    };
    if !store_dirs.iter().any(is_inside) {
        return Ok(());
    }
    let error = Error::refused(format!("it is {}, and a store path must not change", target.display()));
    Err(error.with_hint("change the configuration from which it was generated, such as nix.settings"))
}

/// Returns the file that a path leads to, if it exists. Symbolic links are followed, so that an edit replaces the file
/// and not the link.
fn resolve_links(path: &Path) -> Result<Option<PathBuf>> {
    match fs::canonicalize(path) {
        Ok(target) => Ok(Some(target)),
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            Err(_) => Ok(None),
            Ok(target) => Err(Error::failed(format!(
                "cannot read {}: it is a symbolic link to {}, which does not exist",
                path.display(),
                target.display()
            ))),
        },
        Err(error) => Err(Error::from(error).context(format!("cannot read {}", path.display()))),
    }
}

/// Gives a new file the access control list of the old one, or none.
fn copy_access_list(old: &Path, new: &File) -> io::Result<()> {
    match access_list::read(&regular_file::open(old)?) {
        Some(list) => rustix::fs::fsetxattr(new, access_list::NAME, &list, XattrFlags::empty())?,
        // The new file may have inherited a list from its directory. Errors: there is none, or the file system has no lists.
        None => drop(rustix::fs::fremovexattr(new, access_list::NAME)),
    }
    Ok(())
}

/// A file whose directory is locked, so that only this process edits files in it.
struct LockedFile<'a> {
    path: &'a Path,
    dir: &'a Path,
    /// The open directory: it holds the lock, and is synced after the file is replaced.
    dir_handle: File,
    /// The prefix of the names of temporary files.
    temporary_prefix: OsString,
}

impl<'a> LockedFile<'a> {
    fn lock(path: &'a Path) -> io::Result<Self> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary_prefix = OsString::from(".");
        temporary_prefix.push(path.file_name().unwrap_or(OsStr::new("nix.conf")));
        temporary_prefix.push(".cache-policy.");
        let locked = Self { path, dir, dir_handle: File::open(dir)?, temporary_prefix };
        // Locks the directory itself, so that no lock file remains. A network file system may not support locks; the
        // edit is still atomic there.
        if locked.dir_handle.lock().is_ok() {
            locked.remove_stale_temporary_files();
        }
        Ok(locked)
    }

    /// Removes the temporary files of processes that were killed. Processes that run hold the lock.
    fn remove_stale_temporary_files(&self) {
        let Ok(entries) = fs::read_dir(self.dir) else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(self.temporary_prefix.as_encoded_bytes()) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        // The original error names the temporary file, which the user does not know.
        let without_path = |error: io::Error| io::Error::from(error.kind());
        let builder = &mut tempfile::Builder::new();
        let mut temporary = builder.prefix(&self.temporary_prefix).tempfile_in(self.dir).map_err(without_path)?;
        let file = temporary.as_file_mut();
        file.write_all(text)?;
        let mut mode = NEW_FILE_MODE;
        if let Ok(old) = fs::metadata(self.path) {
            mode = old.mode() & 0o7777;
            let new = file.metadata()?;
            if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
                fchown(&*file, Some(old.uid()), Some(old.gid()))?;
            }
            // Before the mode: without its list, the group bits of a file are the rights of its group.
            copy_access_list(self.path, file)?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        temporary.persist(self.path).map_err(|error| error.error)?;
        self.dir_handle.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without its list, the group of the file would get the rights of all that are on it.
    #[test]
    fn an_access_control_list_is_kept() {
        // Version 2. The owner may read and write, user 65534 may read, and nobody else has access.
        let entries = [(1_u16, 6_u16, u32::MAX), (2, 4, 65534), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            list.extend([&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nix.conf");
        fs::write(&file, "before").unwrap();
        if rustix::fs::setxattr(&file, access_list::NAME, &list, XattrFlags::empty()).is_err() {
            eprintln!("skipped: the file system has no access control lists");
            return;
        }
        assert!(edit_file(&file, |_| Ok(b"after".to_vec())).unwrap());
        let kept = access_list::read(&File::open(&file).unwrap()).unwrap();
        assert_eq!((kept, fs::read(&file).unwrap().as_slice()), (list, b"after".as_slice()));
    }
}
