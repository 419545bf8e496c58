//! Installing from package registries, with their ordinary clients, into a directory that is kept between runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, id};

/// The directory in which a package may be built, below its own. It is not kept.
pub const BUILD_DIRECTORY: &str = "target";

/// A package of a registry, pinned where the registry keeps old versions.
pub struct Package {
    /// The name of its directory.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The file that is needed of it, below its directory.
    pub file: &'static str,
    /// How long that takes, for the user who waits.
    pub duration: &'static str,
    /// Installs it into an empty directory.
    pub install: fn(&Self, &Path) -> Command,
}

impl Package {
    /// Returns the path of its file, after installing it unless that was done before.
    ///
    /// It is installed in a temporary directory that is then renamed, so that an incomplete program is never found;
    /// except a package that contains its own path, whose file is checked instead.
    pub fn find_or_install(&self) -> Result<PathBuf, String> {
        let cache = cache_tests::cache_dir().ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("matrix");
        let dir = cache.join(format!("{}-{}", self.name, self.version));
        if dir.join(self.file).is_file() {
            return Ok(dir.join(self.file));
        }
        eprintln!("matrix: installing {} {} ({}, once)", self.name, self.version, self.duration);
        let building = cache.join(format!(".installing-{}-{}", self.name, id()));
        let failed = |error: std::io::Error| format!("cannot install {}: {error}", self.name);
        fs::create_dir_all(&building).map_err(failed)?;
        let mut command = (self.install)(self, &building);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        let status = status.map_err(|error| format!("cannot run {}: {error}", command.get_program().display()))?;
        // What Cargo has built is several gigabytes, of which only the program is needed.
        drop(fs::remove_dir_all(building.join(BUILD_DIRECTORY)));
        let result = if status.success() && building.join(self.file).is_file() {
            drop(fs::remove_dir_all(&dir));
            fs::rename(&building, &dir).map_err(failed)
        } else {
            Err(format!(
                "cannot install {} {}: {} failed: {status}",
                self.name,
                self.version,
                command.get_program().display()
            ))
        };
        // A directory that cannot be removed is ignored.
        drop(fs::remove_dir_all(&building));
        result.map(|()| dir.join(self.file))
    }
}
