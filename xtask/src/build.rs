//! Cargo: how it is run, and where its output is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// A build profile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// The profile `demo`, which builds in the shortest time.
    Demo,
    Debug,
    Release,
}

impl Profile {
    /// Returns the name of the profile for `--profile`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Debug => "dev",
            Self::Release => "release",
        }
    }
}

/// Returns a command of Cargo in the top directory of the repository.
///
/// Without the variables that Cargo set for xtask itself: the build script of ring watches them, so ring and everything
/// that depends on it would be rebuilt whenever a command that was run by hand follows one that was run by xtask.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Returns the top directory of the repository.
pub fn repository() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Runs a command and requires that it succeeds.
pub fn run(command: &mut Command, name: &str) -> Result {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} failed: {status}")),
        Err(error) => Err(format!("cannot run {name}: {error}")),
    }
}

/// Returns the directory of the binaries that Cargo builds. This program is in TARGET/debug.
pub fn built_dir(profile: Profile) -> Result<PathBuf> {
    let exe = env::current_exe().map_err(|error| format!("cannot find the target directory: {error}"))?;
    let target =
        exe.parent().and_then(Path::parent).ok_or_else(|| format!("no target directory: {}", exe.display()))?;
    Ok(target.join(if profile == Profile::Debug { "debug" } else { profile.name() }))
}
