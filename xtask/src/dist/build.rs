//! The static programs that are packaged.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::build::{Profile, built_dir, cargo, repository, run as run_command};

use super::{TOOLS, is_installed};

/// The example of the `tests` package that writes man pages and completions.
const DOCS: &str = "command-line-docs";

/// Where the programs are.
pub struct Built {
    /// The directory of the programs.
    pub bin_dir: PathBuf,
    /// The target directory of Cargo.
    pub target_dir: PathBuf,
    target: String,
}

impl Built {
    /// Returns the programs in `$NIX_S3_CACHE_BIN`, or builds them.
    pub fn find_or_build(target: Option<&str>) -> Result<Self> {
        let target_dir = built_dir(Profile::Debug)?.parent().map(Path::to_owned).unwrap_or_default();
        let target = target.map_or_else(default_target, str::to_owned);
        if let Some(bin_dir) = env::var_os("NIX_S3_CACHE_BIN") {
            return Ok(Self { bin_dir: bin_dir.into(), target_dir, target });
        }
        let mut command = cargo();
        command.args(["build", "--locked", "--profile", "dist", "--target", &target]);
        for tool in TOOLS {
            command.args(["--package", tool, "--bin", tool]);
        }
        if is_native(&target) {
            command.args(["--package", "tests", "--example", DOCS]);
        }
        // musl is linked statically by default. With glibc, host names are still resolved as nsswitch.conf says.
        if target.ends_with("-gnu") {
            command.env("RUSTFLAGS", "-C target-feature=+crt-static");
        }
        eprintln!("Building static programs for {target}; this takes a few minutes");
        run_command(&mut command, "cargo build")?;
        Ok(Self { bin_dir: target_dir.join(&target).join("dist"), target_dir, target })
    }

    /// Returns the architecture of the target.
    pub fn arch(&self) -> Result<String> {
        let arch = self.target.split('-').next().unwrap_or_default();
        if ["x86_64", "aarch64"].contains(&arch) {
            Ok(arch.to_owned())
        } else {
            Err(format!("dist: no package for {}", self.target))
        }
    }

    /// Writes the man pages and completions below `dir`.
    pub fn write_docs(&self, dir: &Path) -> Result {
        let program = self.bin_dir.join("examples").join(DOCS);
        let mut command = if program.exists() {
            Command::new(program)
        } else {
            // The programs of another architecture do not run here.
            let mut command = cargo();
            command.args(["run", "--quiet", "--locked", "--package", "tests", "--example", DOCS, "--"]);
            command
        };
        run_command(command.arg(dir), DOCS)
    }
}

/// Returns the target of musl if its standard library and a C compiler for it are installed, else that of glibc, which is
/// linked statically too.
fn default_target() -> String {
    let arch = env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output =
        Command::new(rustc).args(["--print", "target-libdir", "--target", &musl]).current_dir(repository()).output();
    let libdir = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if !libdir.is_empty() && Path::new(&libdir).is_dir() && is_installed("musl-gcc") {
        return musl;
    }
    eprintln!("xtask: {musl} is not installed (rustup target add {musl}, and musl-tools): linking glibc statically");
    format!("{arch}-unknown-linux-gnu")
}

fn is_native(target: &str) -> bool {
    target.split('-').next() == Some(env::consts::ARCH)
}
