//! The Nix of Debian's testing release, in a root directory of that release that debootstrap writes. Each command runs in
//! a mount namespace of its own, so that nothing stays mounted. Both need root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::install::Package;

/// The release. It is not pinned, because a mirror has only its newest packages.
const RELEASE: &str = "forky";

/// debootstrap mounts file systems below the directory, which a namespace takes with it.
const INSTALL: &str = r#"set -eu
suite=$1 root=$2/root
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/testing
debootstrap --variant=minbase "$suite" "$root" http://deb.debian.org/debian "$script"
chroot "$root" apt-get install --yes --no-install-recommends nix-bin
rm -rf "$root/var/cache/apt" "$root/var/lib/apt/lists"
cat > "$2/nix" <<'EOF'
#!/bin/sh
# nix below the directory `root`, with the same working directory.
set -eu
root=$(dirname "$(realpath "$0")")/root
exec unshare --mount sh -euc '
  root=$1; shift
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/tmp"
  mkdir -p "$root$PWD"
  mount --bind "$PWD" "$root$PWD"
  exec chroot "$root" env -C "$PWD" nix "$@"' sh "$root" "$@"
EOF
chmod +x "$2/nix""#;

const NIX: Package = Package {
    name: "nix",
    version: RELEASE,
    file: "nix",
    duration: "1 minute",
    install: |package, dir| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", INSTALL, "sh", package.version]).arg(dir);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    },
};

/// An installed Nix.
pub struct Nix {
    /// A program that takes the arguments of `nix`, and sees the working directory under its own path.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
}

/// Installs Nix, the first time; says so if that is not possible.
pub fn nix() -> Result<&'static Nix, String> {
    static NIX: OnceLock<Result<Nix, String>> = OnceLock::new();
    let nix = NIX.get_or_init(|| {
        find_or_install().inspect_err(|error| eprintln!("matrix: NOT RUN: the Nix of Debian testing: {error}"))
    });
    nix.as_ref().map_err(Clone::clone)
}

fn find_or_install() -> Result<Nix, String> {
    if output(Path::new("id"), &["-u"])? != "0" {
        return Err("chroot needs root".to_owned());
    }
    output(Path::new("debootstrap"), &["--version"]).map_err(|_| "`apt-get install debootstrap` is needed")?;
    let program = NIX.find_or_install()?;
    let version = output(&program, &["--version"])?;
    Ok(Nix { version: version.split(' ').next_back().unwrap_or_default().to_owned(), program })
}

/// Returns what a program prints.
fn output(program: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim()))
}
