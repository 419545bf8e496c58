//! Opening of files that must be regular files. Another user may have put a FIFO, a device or a symbolic link in their
//! place: opening a FIFO would wait for a writer, and reading a device may never end.
//!
//! Files that the user names, such as a key file or `--path-info`, are not opened here: they may be FIFOs on purpose, as
//! those of the shell's process substitution are.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::error::Error;

/// Opens a regular file for reading. Symbolic links are followed.
///
/// # Errors
/// Fails if the file cannot be opened. A file of another type is refused (an [`Error`] in the `io::Error`).
pub fn open(path: &Path) -> io::Result<File> {
    open_with(CWD, path, OFlags::RDONLY)
}

/// Opens the regular file `name` of a directory, which must not be a symbolic link. `access` says whether to read or to
/// write, and whether to create the file.
///
/// # Errors
/// As [`open`].
pub fn open_at(dir: impl AsFd, name: &str, access: OFlags) -> io::Result<File> {
    open_with(dir, Path::new(name), access | OFlags::NOFOLLOW)
}

fn open_with(dir: impl AsFd, path: &Path, access: OFlags) -> io::Result<File> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = match openat(dir, path.as_os_str().as_bytes(), flags, Mode::from_raw_mode(0o600)) {
        Ok(fd) => fd,
        Err(Errno::LOOP) if access.contains(OFlags::NOFOLLOW) => return Err(unexpected_type("a symbolic link")),
        // A socket, or a FIFO without a reader that is opened for writing.
        Err(Errno::NXIO) => return Err(unexpected_type("a socket, a FIFO or a device")),
        Err(error) => return Err(error.into()),
    };
    match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
        FileType::RegularFile => Ok(File::from(fd)),
        FileType::Directory => Err(unexpected_type("a directory")),
        FileType::Fifo => Err(unexpected_type("a FIFO")),
        FileType::CharacterDevice | FileType::BlockDevice => Err(unexpected_type("a device")),
        _ => Err(unexpected_type("a file of another type")),
    }
}

fn unexpected_type(found: &str) -> io::Error {
    Error::refused(format!("not a regular file, but {found}")).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        rustix::fs::mkfifoat(CWD, at("fifo"), Mode::from_raw_mode(0o600)).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("fifo", at("link-to-fifo")).unwrap();
        assert!(open(&at("file")).is_ok() && open(&at("link")).is_ok());
        for name in ["directory", "fifo", "socket", "link-to-fifo"] {
            let error = Error::from(open(&at(name)).unwrap_err());
            assert!(error.message().starts_with("not a regular file, but "), "{name}: {error}");
        }
        assert!(Error::from(open(Path::new("/dev/zero")).unwrap_err()).message().ends_with("a device"));
        let dir_fd = File::open(dir.path()).unwrap();
        assert!(open_at(&dir_fd, "file", OFlags::RDONLY).is_ok());
        for name in ["link", "fifo", "socket", "link-to-fifo"] {
            for access in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR | OFlags::CREATE] {
                let error = Error::from(open_at(&dir_fd, name, access).unwrap_err());
                assert!(error.is_refusal(), "{name}: {error}");
            }
        }
    }
}
