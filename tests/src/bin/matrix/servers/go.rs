//! Servers written in Go, which `go install` builds.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use cache_tests::Credentials;

use super::{DOMAIN, Running, start_program};
use crate::install::Package;

const GOFAKES3: Package = Package {
    name: "gofakes3",
    version: "1.2.0",
    file: "gofakes3",
    duration: "10 seconds",
    install: |package, dir| go_install("github.com/johannesboyne/gofakes3/cmd/gofakes3", package, dir),
};

const RCLONE: Package = Package {
    name: "rclone",
    version: "1.76.0",
    file: "rclone",
    duration: "2 minutes",
    install: |package, dir| go_install("github.com/rclone/rclone", package, dir),
};

/// Without a C compiler, and outside a module: a go.mod or go.work in a parent directory must have no effect.
fn go_install(module: &str, package: &Package, dir: &Path) -> Command {
    let mut command = Command::new("go");
    command.args(["install", &format!("{module}@v{}", package.version)]).current_dir(dir);
    command.env("GOBIN", dir).env("CGO_ENABLED", "0").env("GOWORK", "off").env("GOFLAGS", "");
    command
}

/// It accepts every signature, and anonymous requests.
pub(super) fn start_gofakes3() -> Result<Running, String> {
    let program = GOFAKES3.find_or_install()?;
    let args = |_: &Path, endpoint: &str| -> Vec<OsString> {
        ["-backend", "memory", "-host", endpoint, "-hostbucketbase", DOMAIN].map(OsString::from).to_vec()
    };
    let server = start_program(&program, args, &[])?;
    let endpoint = server.endpoint.clone();
    Ok(Running::new(GOFAKES3.version, &endpoint, Credentials::random(), server).with_domain())
}

pub(super) fn start_rclone() -> Result<Running, String> {
    let program = RCLONE.find_or_install()?;
    let credentials = Credentials::random();
    // The variable is a list of pairs, in the form of a line of CSV.
    let key = format!("\"{},{}\"", credentials.access_key, credentials.secret_key);
    let args = |dir: &Path, endpoint: &str| -> Vec<OsString> {
        let data = dir.join("data");
        drop(std::fs::create_dir(&data));
        let mut args: Vec<OsString> = ["serve", "s3", "--addr", endpoint].map(OsString::from).to_vec();
        args.push(data.into());
        args
    };
    let server = start_program(&program, args, &[("RCLONE_AUTH_KEY", &key), ("RCLONE_CONFIG", "/dev/null")])?;
    let endpoint = server.endpoint.clone();
    Ok(Running::new(RCLONE.version, &endpoint, credentials, server))
}
