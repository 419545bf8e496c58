//! Opens directories below a root directory, such as the `R/nix/store` of `--root R`, without leaving the root.
//!
//! A path is resolved one name at a time, relative to open directories and without letting the kernel follow a symbolic
//! link: the target of a link is read and resolved in the same way. `..` returns to the directory that was open before,
//! so a directory that is renamed or replaced by a link meanwhile does not lead outside either. This is the behavior of
//! Linux's `openat2` with `RESOLVE_IN_ROOT` or `RESOLVE_BENEATH`. That call is not used, because it does not report
//! which link leaves the root, and because sandboxes and other systems do not have it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context as _, Error, Result};

/// Maximum number of symbolic links in the resolution of one path (Linux's `MAXSYMLINKS`).
pub(crate) const MAX_LINKS: u32 = 40;

/// Flags for a directory that is only used to reach others. Needs no permission to list it, where the system has `O_PATH`.
#[cfg(target_os = "linux")]
const TRAVERSE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const TRAVERSE: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open directory and the path that it was opened with, for messages. Closed when it is dropped.
#[derive(Debug)]
pub struct OpenDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl OpenDir {
    pub(crate) fn new(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// Opens a directory by its path. Symbolic links are followed.
    ///
    /// # Errors
    /// Fails if it does not exist, is not a directory or cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| cannot_open(path, error))?;
        Ok(Self::new(fd, path.to_owned()))
    }

    /// Returns the path that the directory was opened with. Only for messages: another directory may be there now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a symbolic link does that leaves the root: an absolute one, or one with too many `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeavingLinks {
    /// It is resolved as after `chroot`: an absolute target begins at the root, and `..` in the root is the root. For
    /// reading a file system that is mounted at the root.
    StayInRoot,
    /// It is an error that names the link. For writing.
    Refuse,
}

/// A directory below which paths are resolved.
#[derive(Debug)]
pub struct RootDir {
    dir: OpenDir,
    /// Whether it is the root of the file system, which nothing leaves.
    is_file_system_root: bool,
}

impl RootDir {
    /// Opens the root. The path itself is the user's choice: symbolic links in it are followed.
    ///
    /// # Errors
    /// Fails if it does not exist, is not a directory or cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = OpenDir::open(path)?;
        let (root, own) = (rustix::fs::stat("/"), rustix::fs::fstat(&dir));
        let (root, own) = root.and_then(|root| Ok((root, own?))).map_err(|error| cannot_open(path, error))?;
        Ok(Self { dir, is_file_system_root: (root.st_dev, root.st_ino) == (own.st_dev, own.st_ino) })
    }

    /// Creates the root if it does not exist, with its parents, and opens it.
    ///
    /// # Errors
    /// Fails if it cannot be created or opened.
    pub fn create(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(Error::from).context(|| format!("cannot create {}", path.display()))?;
        Self::open(path)
    }

    /// Returns the path of the root, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Opens a directory below the root; none if it does not exist. A leading slash of `path` is ignored.
    ///
    /// # Errors
    /// Fails if something in the path is not a directory or cannot be read, and for links as `links` requires.
    pub fn open_dir(&self, path: &Path, links: LeavingLinks) -> Result<Option<OpenDir>> {
        self.walk(path, links, false)
    }

    /// Opens a directory below the root, and creates it and its parents if they do not exist. A symbolic link that
    /// leaves the root is an error. A leading slash of `path` is ignored.
    ///
    /// # Errors
    /// Fails if something in the path is not a directory, leaves the root, or cannot be created.
    pub fn create_dir_all(&self, path: &Path) -> Result<OpenDir> {
        let dir = self.walk(path, LeavingLinks::Refuse, true)?;
        dir.ok_or_else(|| cannot_open(&self.join(path), Errno::NOENT))
    }

    fn walk(&self, path: &Path, links: LeavingLinks, create: bool) -> Result<Option<OpenDir>> {
        let mut walk = Walk { root: self, links, create, stack: Vec::new(), pending: Vec::new(), links_followed: 0 };
        walk.push(path, None);
        while let Some(name) = walk.pending.pop() {
            if !walk.enter(name)? {
                return Ok(None);
            }
        }
        let path = walk.path();
        // The last descriptor may be good for traversal only.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(walk.fd(), c".", flags, Mode::empty()).map_err(|error| cannot_open(&path, error))?;
        Ok(Some(OpenDir::new(fd, path)))
    }

    fn join(&self, path: &Path) -> PathBuf {
        self.path().join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// A symbolic link that was followed.
struct Link {
    path: PathBuf,
    target: PathBuf,
}

/// A name that remains to be resolved, and the link whose target it is part of.
struct PendingName {
    name: OsString,
    link: Option<Rc<Link>>,
}

/// The resolution of one path.
struct Walk<'a> {
    root: &'a RootDir,
    links: LeavingLinks,
    create: bool,
    /// The directories below the root that lead to the current one.
    stack: Vec<(OsString, OwnedFd)>,
    /// The names that remain, the next one last.
    pending: Vec<PendingName>,
    links_followed: u32,
}

impl Walk<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root.dir.as_fd(), |(_, fd)| fd.as_fd())
    }

    /// Returns the path of the current directory.
    fn path(&self) -> PathBuf {
        let names: PathBuf = self.stack.iter().map(|(name, _)| name).collect();
        self.root.path().join(names)
    }

    /// Adds the names of a path. Those that are pending follow them.
    fn push(&mut self, path: &Path, link: Option<&Rc<Link>>) {
        let names = path.as_os_str().as_bytes().split(|&byte| byte == b'/').rev();
        let names = names.filter(|name| !matches!(*name, b"" | b"."));
        self.pending.extend(
            names.map(|name| PendingName { name: OsStr::from_bytes(name).to_owned(), link: link.map(Rc::clone) }),
        );
    }

    /// Opens the next directory. Returns false if it does not exist.
    fn enter(&mut self, PendingName { name, link }: PendingName) -> Result<bool> {
        if name == ".." {
            if self.stack.pop().is_none() {
                self.leave_root(&name, link.as_deref())?;
            }
            return Ok(true);
        }
        let open = |dir: BorrowedFd<'_>| rustix::fs::openat(dir, &name, TRAVERSE | OFlags::NOFOLLOW, Mode::empty());
        let mut opened = open(self.fd());
        if self.create && opened.as_ref().is_err_and(|error| *error == Errno::NOENT) {
            match rustix::fs::mkdirat(self.fd(), &name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => opened = open(self.fd()),
                Err(error) => {
                    let (path, error) = (self.path().join(name), std::io::Error::from(error));
                    return Err(Error::failed(format!("cannot create {}: {error}", path.display())));
                }
            }
        }
        match opened {
            Ok(fd) => self.stack.push((name, fd)),
            Err(Errno::NOENT) => return Ok(false),
            // A symbolic link, or not a directory.
            Err(error @ (Errno::NOTDIR | Errno::LOOP)) => self.follow(&name, error)?,
            Err(error) => return Err(cannot_open(&self.path().join(name), error)),
        }
        Ok(true)
    }

    /// Continues with the target of a symbolic link.
    fn follow(&mut self, name: &OsStr, error: Errno) -> Result {
        let path = self.path().join(name);
        let Ok(target) = rustix::fs::readlinkat(self.fd(), name, Vec::new()) else {
            return Err(cannot_open(&path, error));
        };
        self.links_followed += 1;
        if self.links_followed > MAX_LINKS {
            return Err(cannot_open(&path, Errno::LOOP));
        }
        let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
        let link = Rc::new(Link { path, target });
        if link.target.is_absolute() {
            self.leave_root(link.target.as_os_str(), Some(&link))?;
            self.stack.clear();
        }
        self.push(&link.target, Some(&link));
        Ok(())
    }

    /// Refuses a name that leads out of the root, unless it is to be resolved as after `chroot`.
    fn leave_root(&self, name: &OsStr, link: Option<&Link>) -> Result {
        if self.links == LeavingLinks::StayInRoot || self.root.is_file_system_root {
            return Ok(());
        }
        let root = self.root.path().display();
        let Some(Link { path, target }) = link else {
            return Err(Error::failed(format!("{} leads out of {root}", Path::new(name).display())));
        };
        let (path, target) = (path.display(), target.display());
        Err(Error::failed(format!("{path} is a symbolic link to {target}, which leads out of {root}"))
            .with_hint("replace it by a directory, a bind mount, or a relative link to a directory below the root"))
    }
}

fn cannot_open(path: &Path, error: Errno) -> Error {
    Error::failed(format!("cannot open {}: {}", path.display(), std::io::Error::from(error)))
}

/// Opens the directory that contains `path`, so that `path` can be used as a name relative to it from then on. Returns
/// none for a path without a last name, such as `/` or `..`.
pub(crate) fn open_parent(path: &Path) -> Result<Option<(OpenDir, &OsStr)>, Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let opened = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let fd = rustix::fs::openat(CWD, opened, TRAVERSE, Mode::empty())?;
    Ok(Some((OpenDir::new(fd, parent.to_owned()), name)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root `r` and a directory `outside` next to it.
    fn fixture() -> (tempfile::TempDir, RootDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("outside/store")).unwrap();
        let root = dir.path().join("r");
        (dir, RootDir::create(&root).unwrap(), root)
    }

    fn place(dir: &OpenDir) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir.fd))).unwrap()
    }

    fn create(root: &RootDir) -> Result<OpenDir> {
        root.create_dir_all(Path::new("/nix/store"))
    }

    #[test]
    fn directories_are_created_below_the_root() {
        let (_dir, root, path) = fixture();
        assert!(root.open_dir(Path::new("nix/store"), LeavingLinks::Refuse).unwrap().is_none());
        let created = create(&root).unwrap();
        assert_eq!((created.path(), place(&created)), (path.join("nix/store").as_path(), path.join("nix/store")));
        assert_eq!(place(&create(&root).unwrap()), path.join("nix/store"));
        fs::write(path.join("file"), "").unwrap();
        assert!(root.create_dir_all(Path::new("file/x")).unwrap_err().message().contains("file: Not a directory"));
    }

    #[test]
    fn a_link_that_stays_below_the_root_is_followed() {
        let (_dir, root, path) = fixture();
        fs::create_dir_all(path.join("a/b")).unwrap();
        symlink("a/b/../../data", path.join("nix")).unwrap();
        assert_eq!(place(&create(&root).unwrap()), path.join("data/store"));
    }

    #[test]
    fn a_link_that_leaves_the_root_is_refused_by_name() {
        for (link, target) in [("nix", "../outside"), ("nix", "/outside"), ("nix/store", "x/../../../outside/store")] {
            let (dir, root, path) = fixture();
            fs::create_dir_all(path.join(link).parent().unwrap().join("x")).unwrap();
            symlink(target, path.join(link)).unwrap();
            for result in [create(&root).map(Some), root.open_dir(Path::new("nix/store"), LeavingLinks::Refuse)] {
                let error = result.unwrap_err();
                let expected = format!("{} is a symbolic link to {target}", path.join(link).display());
                assert!(error.message().starts_with(&expected), "{error}");
                assert_eq!(error.exit_status(), 2);
            }
            assert_eq!(fs::read_dir(dir.path().join("outside/store")).unwrap().count(), 0);
        }
    }

    #[test]
    fn links_are_resolved_in_the_root_as_after_chroot() {
        let (_dir, root, path) = fixture();
        fs::create_dir_all(path.join("data/store")).unwrap();
        for target in ["/data", "../../../data", "data", "/data/../data/store/.."] {
            symlink(target, path.join("nix")).unwrap();
            let dir = root.open_dir(Path::new("/nix/store"), LeavingLinks::StayInRoot).unwrap().unwrap();
            assert_eq!(place(&dir), path.join("data/store"), "{target}");
            fs::remove_file(path.join("nix")).unwrap();
        }
        symlink("/outside", path.join("nix")).unwrap();
        assert!(root.open_dir(Path::new("nix/store"), LeavingLinks::StayInRoot).unwrap().is_none());
    }

    #[test]
    fn links_that_form_a_cycle_are_an_error() {
        let (_dir, root, path) = fixture();
        symlink("b", path.join("nix")).unwrap();
        symlink("nix", path.join("b")).unwrap();
        assert!(create(&root).unwrap_err().message().contains("Too many levels of symbolic links"));
    }

    #[test]
    fn nothing_leaves_the_root_of_the_file_system() {
        let (dir, _, path) = fixture();
        symlink(dir.path().join("outside"), path.join("nix")).unwrap();
        let root = RootDir::open(Path::new("/")).unwrap();
        assert_eq!(place(&root.create_dir_all(&path.join("nix/store")).unwrap()), dir.path().join("outside/store"));
    }
}
