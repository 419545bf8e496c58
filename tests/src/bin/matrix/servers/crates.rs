//! Servers written in Rust: our own embedded one, and those that `cargo install` builds.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use cache_tests::{Credentials, EmbeddedS3, SupervisedServer};

use super::{DOMAIN, Running, start_program};
use crate::install::{BUILD_DIRECTORY, Package};

const S3S_FS: Package = Package {
    name: "s3s-fs",
    version: "0.14.1",
    file: "bin/s3s-fs",
    duration: "3 minutes",
    install: |package, dir| cargo_install(package, &["--features", "binary"], dir),
};

const GARAGE: Package = Package {
    name: "garage",
    version: "2.5.0",
    file: "bin/garage",
    duration: "6 minutes",
    install: |package, dir| cargo_install(package, &[], dir),
};

/// The region of Garage's own.
const GARAGE_REGION: &str = "garage";

fn cargo_install(package: &Package, args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["cargo", "install", "--quiet", "--locked", "--no-track"]).args(args);
    command.arg("--root").arg(dir).arg(format!("{}@{}", package.name, package.version));
    // Beside the sources of this repository, its settings would apply.
    command.current_dir(dir).env("CARGO_TARGET_DIR", dir.join(BUILD_DIRECTORY));
    command
}

#[allow(clippy::unnecessary_wraps)] // the type of `Server::start`
pub(super) fn start_embedded() -> Result<Running, String> {
    let server = EmbeddedS3::start();
    let (endpoint, credentials) = (server.endpoint(), server.credentials());
    let running = Running::new(env!("CARGO_PKG_VERSION"), &endpoint, credentials, server);
    Ok(Running { is_atomic: false, ..running })
}

pub(super) fn start_s3s_fs() -> Result<Running, String> {
    let program = S3S_FS.find_or_install()?;
    let credentials = Credentials::random();
    let args = |dir: &Path, endpoint: &str| -> Vec<OsString> {
        let (host, port) = endpoint.split_once(':').unwrap_or((endpoint, ""));
        let data = dir.join("data");
        drop(fs::create_dir_all(&data));
        let keys = ["--access-key", &credentials.access_key, "--secret-key", &credentials.secret_key];
        let mut args: Vec<OsString> = ["--host", host, "--port", port, "--domain", DOMAIN].map(OsString::from).to_vec();
        args.extend(keys.map(OsString::from));
        args.push(data.into());
        args
    };
    let server = start_program(&program, args, &[])?;
    let endpoint = server.endpoint.clone();
    let running = Running::new(S3S_FS.version, &endpoint, credentials.clone(), server).with_domain();
    Ok(Running { is_atomic: false, ..running })
}

/// A cluster of one node: it gets a layout, and a key that may create buckets.
pub(super) fn start_garage() -> Result<Running, String> {
    let program = GARAGE.find_or_install()?;
    let args = |dir: &Path, endpoint: &str| -> Vec<OsString> {
        let config = dir.join("garage.toml");
        drop(fs::write(&config, garage_config(dir, endpoint)));
        vec!["-c".into(), config.into(), "server".into()]
    };
    let server = start_program(&program, args, &[])?;
    let credentials = garage_layout(&program, &server)?;
    let endpoint = server.endpoint.clone();
    let running = Running::new(GARAGE.version, &endpoint, credentials, server).with_domain();
    Ok(Running { region: GARAGE_REGION, ..running })
}

fn garage_config(dir: &Path, endpoint: &str) -> String {
    let rpc = cache_tests::free_endpoint();
    format!(
        "metadata_dir = \"{dir}/meta\"\ndata_dir = \"{dir}/data\"\ndb_engine = \"sqlite\"\nreplication_factor = 1\n\
         rpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\nrpc_secret = \"{secret}\"\n\
         [s3_api]\ns3_region = \"{GARAGE_REGION}\"\napi_bind_addr = \"{endpoint}\"\nroot_domain = \".{DOMAIN}\"\n",
        dir = dir.display(),
        secret = "42".repeat(32),
    )
}

fn garage_layout(program: &Path, server: &SupervisedServer) -> Result<Credentials, String> {
    let garage = |args: &[&str]| {
        let mut command = Command::new(program);
        let output = command.arg("-c").arg(server.dir.join("garage.toml")).args(args).output();
        let output = output.map_err(|error| format!("cannot run garage: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(format!("garage {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    };
    let node = garage(&["node", "id", "-q"])?;
    let node = node.trim().split('@').next().unwrap_or_default().to_owned();
    garage(&["layout", "assign", "-z", "here", "-c", "10G", &node])?;
    garage(&["layout", "apply", "--version", "1"])?;
    let created = garage(&["key", "create", "matrix"])?;
    let field = |name: &str| {
        let line = created.lines().find(|line| line.trim_start().to_ascii_lowercase().starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let (access_key, secret_key) = field("key id").zip(field("secret key")).ok_or("garage printed no key")?;
    garage(&["key", "allow", "--create-bucket", &access_key])?;
    Ok(Credentials { access_key, secret_key })
}
