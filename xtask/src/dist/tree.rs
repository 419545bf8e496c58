//! The files of the packages, in the layout of /usr.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::Result;
use crate::build::repository;

use super::build::Built;
use super::{TOOLS, create_dir};

/// Documents in share/doc/nix-s3-cache.
const DOCUMENTS: [&str; 8] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs",
];

/// Writes all files below `root`: bin, lib and share.
pub fn write(root: &Path, built: &Built) -> Result {
    for tool in TOOLS {
        copy(&built.bin_dir.join(tool), &root.join("bin").join(tool), 0o755)?;
    }
    let dist = repository().join("xtask/dist");
    for (name, path) in entries(&dist.join("lib"))? {
        copy(&path, &root.join("lib/nix-s3-cache").join(name), 0o755)?;
    }
    for (name, path) in entries(&dist.join("systemd"))? {
        let target = match name.as_str() {
            "sysusers.conf" => root.join("lib/sysusers.d/nix-s3-cache.conf"),
            unit => root.join("lib/systemd/system").join(unit),
        };
        copy(&path, &target, 0o644)?;
    }
    let share = root.join("share");
    create_dir(&share)?;
    built.write_docs(&share)?;
    for document in DOCUMENTS {
        copy_all(&repository().join(document), &share.join("doc/nix-s3-cache").join(document))?;
    }
    Ok(())
}

/// Copies a file, or a directory with all that is in it; programs stay executable.
fn copy_all(from: &Path, to: &Path) -> Result {
    if from.is_dir() {
        for (name, path) in entries(from)? {
            copy_all(&path, &to.join(name))?;
        }
        return Ok(());
    }
    let mode = from.metadata().map_or(0, |metadata| metadata.permissions().mode());
    copy(from, to, if mode & 0o100 == 0 { 0o644 } else { 0o755 })
}

/// Copies a file and sets its mode, whatever the umask is.
pub fn copy(from: &Path, to: &Path, mode: u32) -> Result {
    create_dir(to.parent().unwrap_or(to))?;
    let copied = fs::copy(from, to).and_then(|_| fs::set_permissions(to, Permissions::from_mode(mode)));
    copied.map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))
}

/// Returns the names and paths of the entries of a directory, sorted.
pub fn entries(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let failed = |error| format!("cannot list {}: {error}", dir.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    entries.sort();
    Ok(entries)
}
