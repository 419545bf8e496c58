//! The S3 servers of the tests, MinIO with its client and versitygw: found, or built once with Go and kept outside the
//! target directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, id};

use crate::Outcome;
use crate::build::succeed;

/// One of the programs.
struct Program {
    name: &'static str,
    /// The environment variable that names the executable.
    variable: &'static str,
    /// What `go install` takes: the last release of the community edition, pinned.
    module: &'static str,
    /// What only the right program says of its version.
    mark: &'static str,
    /// How long it takes to build, for the impatient.
    duration: &'static str,
}

const SERVER: Program = Program {
    name: "minio",
    variable: "MINIO",
    module: "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
    mark: "MinIO",
    duration: "some 4 minutes",
};

const CLIENT: Program = Program {
    name: "mc",
    variable: "MC",
    module: "github.com/minio/mc@v0.0.0-20250313080218-cf909e1063a9",
    mark: "MinIO",
    duration: "a minute",
};

const VERSITYGW: Program = Program {
    name: "versitygw",
    variable: "VERSITYGW",
    module: "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
    mark: "BuildTime",
    duration: "a minute",
};

/// Where MinIO and its client are.
pub struct Minio {
    pub server: PathBuf,
    pub client: PathBuf,
}

/// `cargo xtask minio`.
pub fn run() -> Outcome {
    let minio = get()?;
    println!("minio: {}\nmc: {}", minio.server.display(), minio.client.display());
    println!("versitygw: {}", versitygw()?.display());
    Ok(())
}

/// Finds both, and builds with Go what is not found.
pub fn get() -> Result<Minio, String> {
    Ok(Minio { server: SERVER.get()?, client: CLIENT.get()? })
}

/// Finds versitygw, or builds it with Go.
pub fn versitygw() -> Result<PathBuf, String> {
    VERSITYGW.get()
}

impl Program {
    fn get(&self) -> Result<PathBuf, String> {
        if let Some(path) = env::var_os(self.variable).filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            return self.check(&path).map(|()| path);
        }
        let cache = cache_dir()?;
        let path = env::var_os("PATH").unwrap_or_default();
        let places = env::split_paths(&path).chain([cache.clone()]).map(|dir| dir.join(self.name));
        // Midnight Commander is an mc too: only one that works counts.
        let found = places.filter(|place| place.is_file()).find(|place| self.check(place).is_ok());
        found.map_or_else(|| self.install(&cache), Ok)
    }

    /// Builds it in a directory of its own and moves it into place, so that nobody ever finds half a program.
    fn install(&self, cache: &Path) -> Result<PathBuf, String> {
        eprintln!("xtask: building {} ({}, once)", self.module, self.duration);
        let dir = cache.join(format!(".building-{}-{}", self.name, id()));
        let failed = |error| format!("cannot make {}: {error}", dir.display());
        fs::create_dir_all(&dir).map_err(failed)?;
        // Without a C compiler, as MinIO's own releases.
        let mut go = Command::new("go");
        go.args(["install", self.module]).env("GOBIN", &dir).env("CGO_ENABLED", "0").stdin(Stdio::null());
        // `go install` outside a module; a go.mod or go.work around here has no say.
        go.env("GOWORK", "off").env("GOFLAGS", "").current_dir(&dir);
        let place = cache.join(self.name);
        let built = succeed(&mut go, &format!("go install {}", self.module)).and_then(|()| {
            let built = dir.join(self.name);
            self.check(&built)?;
            fs::rename(&built, &place).map_err(|error| format!("cannot move {}: {error}", built.display()))
        });
        // Whatever is left there is of no use to anybody.
        drop(fs::remove_dir_all(&dir));
        built.map(|()| place)
    }

    fn check(&self, path: &Path) -> Outcome {
        let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("cannot run {}: {error}", path.display()))?;
        let known = String::from_utf8_lossy(&output.stdout).contains(self.mark);
        if known { Ok(()) } else { Err(format!("{} is another program than {}", path.display(), self.module)) }
    }
}

/// Outside the target directory, so that `cargo clean` does not cost four minutes.
fn cache_dir() -> Result<PathBuf, String> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.map(|dir| dir.join("nix-s3-cache/bin")).ok_or_else(|| "neither XDG_CACHE_HOME nor HOME is set".to_owned())
}
