//! The S3 servers of the tests, MinIO with its client and versitygw: found, or built once with Go and kept outside the
//! target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, id};

use crate::Result;
use crate::build::run as run_command;
use crate::installed_program::{bin_dir, candidates, from_variable};

/// A program to find or to build.
struct Program {
    name: &'static str,
    /// The environment variable that names the executable.
    variable: &'static str,
    /// The argument of `go install`: the last release of the community edition, pinned.
    module: &'static str,
    /// A word that only the right program prints with --version.
    version_mark: &'static str,
    /// How long the build takes, for the user who waits.
    build_time: &'static str,
}

const SERVER: Program = Program {
    name: "minio",
    variable: "MINIO",
    module: "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
    version_mark: "MinIO",
    build_time: "about 4 minutes",
};

const CLIENT: Program = Program {
    name: "mc",
    variable: "MC",
    module: "github.com/minio/mc@v0.0.0-20250313080218-cf909e1063a9",
    version_mark: "MinIO",
    build_time: "a minute",
};

const VERSITYGW: Program = Program {
    name: "versitygw",
    variable: "VERSITYGW",
    module: "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
    version_mark: "BuildTime",
    build_time: "a minute",
};

/// Paths of MinIO and its client.
pub struct Minio {
    server: PathBuf,
    client: PathBuf,
}

impl Minio {
    /// Sets the variables by which the tests find both.
    pub fn set_env(&self, command: &mut Command) {
        command.env(SERVER.variable, &self.server).env(CLIENT.variable, &self.client);
    }
}

/// Installs all three programs and prints their paths.
pub fn run() -> Result {
    let minio = find_or_install()?;
    println!("minio: {}\nmc: {}", minio.server.display(), minio.client.display());
    println!("versitygw: {}", find_or_install_versitygw()?.display());
    Ok(())
}

/// Finds MinIO and its client, or builds them with Go.
pub fn find_or_install() -> Result<Minio> {
    Ok(Minio { server: SERVER.find_or_install()?, client: CLIENT.find_or_install()? })
}

/// Finds versitygw, or builds it with Go.
pub fn find_or_install_versitygw() -> Result<PathBuf> {
    VERSITYGW.find_or_install()
}

impl Program {
    fn find_or_install(&self) -> Result<PathBuf> {
        if let Some(path) = from_variable(self.variable) {
            return self.check(&path).map(|()| path);
        }
        let cache = bin_dir().ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
        // Midnight Commander is called mc too, so the version is checked.
        let found = candidates(self.variable, self.name).into_iter().find(|path| self.check(path).is_ok());
        found.map_or_else(|| self.install(&cache), Ok)
    }

    /// Builds the program in a temporary directory and renames it, so that an incomplete program is never found.
    fn install(&self, cache: &Path) -> Result<PathBuf> {
        eprintln!("xtask: building {} ({}, once)", self.module, self.build_time);
        let dir = cache.join(format!(".building-{}-{}", self.name, id()));
        let failed = |error| format!("cannot create {}: {error}", dir.display());
        fs::create_dir_all(&dir).map_err(failed)?;
        // Without a C compiler, as MinIO's own releases.
        let mut go = Command::new("go");
        go.args(["install", self.module]).env("GOBIN", &dir).env("CGO_ENABLED", "0").stdin(Stdio::null());
        // Outside a module: a go.mod or go.work in a parent directory must have no effect.
        go.env("GOWORK", "off").env("GOFLAGS", "").current_dir(&dir);
        let path = cache.join(self.name);
        let result = run_command(&mut go, &format!("go install {}", self.module)).and_then(|()| {
            let built = dir.join(self.name);
            self.check(&built)?;
            fs::rename(&built, &path).map_err(|error| format!("cannot move {}: {error}", built.display()))
        });
        // A directory that cannot be removed is ignored.
        drop(fs::remove_dir_all(&dir));
        result.map(|()| path)
    }

    fn check(&self, path: &Path) -> Result {
        let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("cannot run {}: {error}", path.display()))?;
        let matches = String::from_utf8_lossy(&output.stdout).contains(self.version_mark);
        if matches { Ok(()) } else { Err(format!("{} is not {}", path.display(), self.module)) }
    }
}
