//! Where the S3 servers of the tests are: `cargo xtask minio` installs them, and the tests start them. `xtask` includes this
//! file by path, because it has no dependencies.

use std::env;
use std::path::PathBuf;

/// Returns the value of a variable that names a program, unless it is empty.
pub(crate) fn from_variable(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Lists the files that may be a program: the value of an environment variable, else those on PATH and then the one in the
/// cache directory.
pub(crate) fn candidates(variable: &str, name: &str) -> Vec<PathBuf> {
    if let Some(path) = from_variable(variable) {
        return vec![path];
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(bin_dir());
    dirs.map(|dir| dir.join(name)).filter(|path| path.is_file()).collect()
}

/// Returns the directory of what is installed for the tests, outside the target directory, so that `cargo clean` does not
/// remove it. There is none if neither `XDG_CACHE_HOME` nor `HOME` is set.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    let cache = from_variable("XDG_CACHE_HOME").or_else(|| from_variable("HOME").map(|home| home.join(".cache")));
    cache.map(|dir| dir.join("nix-s3-cache"))
}

/// Returns the directory of installed programs.
pub(crate) fn bin_dir() -> Option<PathBuf> {
    cache_dir().map(|dir| dir.join("bin"))
}
