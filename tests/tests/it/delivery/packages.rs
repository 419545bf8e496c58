//! `cargo xtask dist`, with small scripts in place of the programs: the programs themselves take minutes to build.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use cache_tests::{Scratch, bin_dir};

use super::is_installed;
use super::units::SERVICES;

const TOOLS: [&str; 6] = ["nar-pack", "narinfo-gen", "cache-sign", "s3-push", "s3-pull", "cache-policy"];

/// Runs `xtask dist` for a directory of scripts; the packages are in `out`.
fn package() -> Scratch {
    let mut scratch = Scratch::new();
    let bin = scratch.dir("built");
    for tool in TOOLS {
        scratch.write(&format!("built/{tool}"), format!("#!/bin/sh\necho {tool}\n"));
        fs::set_permissions(bin.join(tool), Permissions::from_mode(0o755)).unwrap();
    }
    scratch.dir("built/examples");
    symlink(bin_dir().join("examples/command-line-docs"), bin.join("examples/command-line-docs")).unwrap();
    scratch.env("NIX_S3_CACHE_BIN", &bin);
    dist(&scratch, "out");
    scratch
}

fn dist(scratch: &Scratch, out: &str) {
    let xtask = bin_dir().join("xtask");
    scratch.dir(out);
    scratch
        .sh(&format!("umask 077; '{}' dist --target x86_64-unknown-linux-gnu --out $PWD/{out}", xtask.display()))
        .ok();
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[test]
fn the_archive_has_all_files_and_a_checksum() {
    let scratch = package();
    scratch.sh("cd out && sha256sum --check --strict --quiet SHA256SUMS").ok();
    let name = format!("nix-s3-cache-{}-x86_64-linux", version());
    let listing = scratch.sh(&format!("tar tvf out/{name}.tar.gz")).ok();
    let expect = |mode: &str, path: &str| {
        let found = listing.lines().any(|line| line.starts_with(mode) && line.ends_with(&format!(" {name}/{path}")));
        assert!(found, "no {mode} {path} in\n{listing}");
    };
    for tool in TOOLS {
        expect("-rwxr-xr-x 0/0", &format!("bin/{tool}"));
        expect("-rw-r--r-- 0/0", &format!("share/man/man1/{tool}.1"));
        expect("-rw-r--r-- 0/0", &format!("share/bash-completion/completions/{tool}"));
    }
    for script in ["queue-hook", "push-queue", "check-cache"] {
        expect("-rwxr-xr-x 0/0", &format!("lib/nix-s3-cache/{script}"));
    }
    for service in SERVICES {
        expect("-rw-r--r-- 0/0", &format!("lib/systemd/system/{service}.service"));
    }
    expect("-rw-r--r-- 0/0", "share/doc/nix-s3-cache/docs/installing.md");
    expect("-rw-r--r-- 0/0", "share/doc/nix-s3-cache/LICENSE-MIT");
}

#[test]
fn the_same_commit_gives_the_same_packages() {
    let scratch = package();
    dist(&scratch, "again");
    scratch.sh("cmp out/SHA256SUMS again/SHA256SUMS").ok();
}

#[test]
fn the_debian_package_installs_units_that_systemd_accepts() {
    if !is_installed("dpkg-deb", "dpkg") || !is_installed("systemd-analyze", "systemd") {
        return;
    }
    let scratch = package();
    let deb = format!("out/nix-s3-cache_{}_amd64.deb", version());
    let control = scratch.sh(&format!("dpkg-deb --field {deb}")).ok();
    assert!(control.contains("Package: nix-s3-cache\n") && control.contains("Architecture: amd64\n"), "{control}");
    let scripts = scratch.sh(&format!("dpkg-deb --ctrl-tarfile {deb} | tar tv")).ok();
    for script in ["postinst", "prerm", "postrm"] {
        assert!(scripts.lines().any(|line| line.starts_with("-rwxr-xr-x") && line.ends_with(script)), "{scripts}");
    }
    scratch.sh(&format!("dpkg-deb --extract {deb} root")).ok();
    for file in ["bin/s3-push", "share/man/man1/s3-pull-dead.1.gz", "share/zsh/vendor-completions/_s3-push"] {
        assert!(scratch.path().join("root/usr").join(file).is_file(), "{file}");
    }
    // What the units need from the host.
    scratch.sh("mkdir -p root/bin root/lib && touch root/bin/chown && chmod +x root/bin/chown").ok();
    scratch.sh("cp -r /usr/lib/systemd/system/. root/usr/lib/systemd/system/").ok();
    let output = scratch.sh(
        "for unit in root/usr/lib/systemd/system/nix-s3-cache-*; do \
         systemd-analyze verify --root=$PWD/root --man=no --recursive-errors=no /usr/lib/systemd/system/${unit##*/}; done",
    );
    output.ok();
    let own: Vec<_> = output.stderr.lines().filter(|line| line.contains("nix-s3-cache")).collect();
    assert!(own.is_empty(), "{own:?}");
}
