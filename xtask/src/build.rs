//! Cargo: where it is, what it builds, and where that lies.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// How the tools are built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Debug,
    Release,
}

/// Cargo, in the top directory of the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

/// The top directory of the repository.
pub fn repository() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Builds the tools and the embedded server, and returns the directory that they are in.
///
/// `$NIX_S3_CACHE_BIN` names a directory where somebody else built them.
pub fn tools(profile: Profile) -> Result<PathBuf, String> {
    if let Some(dir) = env::var_os("NIX_S3_CACHE_BIN") {
        return Ok(PathBuf::from(dir));
    }
    eprintln!("Building the tools; the first time that takes a few minutes.");
    let mut command = cargo();
    command.args(["build", "--quiet", "--workspace", "--exclude", "xtask", "--bins"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    succeed(&mut command, "cargo build")?;
    Ok(target_dir()?.join(if profile == Profile::Release { "release" } else { "debug" }))
}

/// Runs a command to its end and demands success.
pub fn succeed(command: &mut Command, name: &str) -> Outcome {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} failed: {status}")),
        Err(error) => Err(format!("cannot run {name}: {error}")),
    }
}

/// Where Cargo puts what it builds. This program lies there too: TARGET/debug/xtask.
pub fn target_dir() -> Result<PathBuf, String> {
    let exe = env::current_exe().map_err(|error| format!("cannot find the target directory: {error}"))?;
    let dir = exe.parent().and_then(Path::parent);
    dir.map(Path::to_owned).ok_or_else(|| format!("{} is not in a target directory", exe.display()))
}
