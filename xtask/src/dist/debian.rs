//! The .deb: the files below /usr, and scripts that create the user of the services.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::build::{repository, run as run_command};

use super::tree::{copy, entries};
use super::{Release, create_dir, set_modes, write as write_file};

/// Writes the package of the files in `tree` to `out` and returns its name; `root` is for temporary files.
pub fn write(tree: &Path, root: &Path, out: &Path, release: &Release) -> Result<String> {
    create_dir(root)?;
    let usr = root.join("usr");
    rename(tree, &usr)?;
    rename(&usr.join("share/zsh/site-functions"), &usr.join("share/zsh/vendor-completions"))?;
    rename(&usr.join("share/doc/nix-s3-cache/LICENSE-MIT"), &usr.join("share/doc/nix-s3-cache/copyright"))?;
    let mut gzip = Command::new("gzip");
    gzip.arg("-9n");
    for (_, page) in entries(&usr.join("share/man/man1"))? {
        gzip.arg(page);
    }
    run_command(&mut gzip, "gzip")?;

    let control = root.join("DEBIAN");
    for (name, path) in entries(&repository().join("xtask/dist/debian"))? {
        copy(&path, &control.join(name), 0o755)?;
    }
    let arch = if release.arch == "aarch64" { "arm64" } else { "amd64" };
    write_file(&control.join("control"), control_file(&release.version, arch, size(&usr)?.div_ceil(1024)))?;
    set_modes(root)?;
    let name = format!("nix-s3-cache_{}_{arch}.deb", release.version);
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", "-Zxz", "--build"]).arg(root).arg(out.join(&name));
    run_command(dpkg.env("SOURCE_DATE_EPOCH", &release.time).stdout(std::process::Stdio::null()), "dpkg-deb")?;
    Ok(name)
}

/// The programs are static, so the package depends on nothing. The certificates are for https.
fn control_file(version: &str, arch: &str, installed_kib: u64) -> String {
    format!(
        "Package: nix-s3-cache
Version: {version}
Architecture: {arch}
Maintainer: nix-s3-cache contributors <nix-s3-cache@users.noreply.github.com>
Installed-Size: {installed_kib}
Recommends: ca-certificates
Suggests: nix-bin
Section: utils
Priority: optional
Homepage: https://github.com/nix-s3-cache/nix-s3-cache
Description: tools for Nix binary caches in S3 buckets
 Six small tools that pack, sign, publish, fetch and delete store paths of Nix,
 and systemd units that push what a host builds, delete unneeded paths, and
 check the bucket. None of the tools needs Nix.
"
    )
}

/// Returns the size of all files below `dir` in bytes.
fn size(dir: &Path) -> Result<u64> {
    entries(dir)?.iter().try_fold(0, |sum, (_, path)| {
        let metadata = path.metadata().map_err(|error| format!("cannot stat {}: {error}", path.display()))?;
        Ok(sum + if metadata.is_dir() { size(path)? } else { metadata.len() })
    })
}

fn rename(from: &Path, to: &Path) -> Result {
    fs::rename(from, to).map_err(|error| format!("cannot move {} to {}: {error}", from.display(), to.display()))
}
