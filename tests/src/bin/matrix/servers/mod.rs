//! The servers: where each comes from, and how it is installed and started.

mod crates;
mod go;
mod maven;
mod minio;
mod moto;

use std::any::Any;
use std::ffi::OsString;
use std::panic;
use std::path::Path;

use cache_tests::{Credentials, SupervisedServer, http_status};

use crate::trial::REGION;

/// The domain of buckets in host names, for servers that have one. It does not resolve.
const DOMAIN: &str = "s3.example";

/// A server that can be installed.
pub struct Server {
    /// Its name on the command line and in JSON.
    pub name: &'static str,
    /// Its name in the table.
    pub title: &'static str,
    /// The registry, the package and how it runs.
    pub source: &'static str,
    /// Installs it unless it is in the cache, and starts it.
    pub start: fn() -> Result<Running, String>,
}

/// All servers, in the order of the table.
pub static SERVERS: [Server; 10] = [
    Server { name: "minio", title: "MinIO", source: "Go module, erasure-coded directory", start: minio::start_minio },
    Server {
        name: "versitygw",
        title: "versitygw",
        source: "Go module, POSIX directory",
        start: minio::start_versitygw,
    },
    Server {
        name: "embedded",
        title: "embedded s3s",
        source: "the server of our demo: crate s3s, directory",
        start: crates::start_embedded,
    },
    Server { name: "moto", title: "moto", source: "PyPI, in memory", start: moto::start },
    Server { name: "gofakes3", title: "gofakes3", source: "Go module, in memory", start: go::start_gofakes3 },
    Server { name: "rclone", title: "rclone serve s3", source: "Go module, directory", start: go::start_rclone },
    Server { name: "s3proxy", title: "S3Proxy", source: "Maven Central, directory", start: maven::start_s3proxy },
    Server { name: "s3mock", title: "S3Mock", source: "Maven Central, directory", start: maven::start_s3mock },
    Server { name: "s3s-fs", title: "s3s-fs", source: "crates.io, directory", start: crates::start_s3s_fs },
    Server { name: "garage", title: "Garage", source: "crates.io, one node", start: crates::start_garage },
];

/// A running server. It ends when this is dropped.
pub struct Running {
    /// Its version.
    pub version: String,
    /// `127.0.0.1:PORT`.
    pub endpoint: String,
    /// The administrator's credentials.
    pub credentials: Credentials,
    /// The region that requests must be signed for.
    pub region: &'static str,
    /// The domain of buckets in host names, if the server has one.
    pub domain: Option<&'static str>,
    /// How users get permissions, if the server has users.
    pub users: Option<Users>,
    /// Whether it tests the condition of a write and writes in one step.
    pub is_atomic: bool,
    /// The process.
    _process: Box<dyn Any>,
}

/// How the users of a server get permissions.
pub enum Users {
    /// Creates a user with that identity policy.
    IdentityPolicies(Box<dyn Fn(&str) -> Credentials>),
    /// Creates a user whose access key bucket policies name.
    BucketPolicies(Box<dyn Fn() -> Credentials>),
}

impl Running {
    /// A server without users and without buckets in host names.
    fn new(version: impl Into<String>, endpoint: &str, credentials: Credentials, process: impl Any) -> Self {
        Self {
            version: version.into(),
            endpoint: endpoint.to_owned(),
            credentials,
            region: REGION,
            domain: None,
            users: None,
            is_atomic: true,
            _process: Box::new(process),
        }
    }

    /// Sets that the server has buckets in host names.
    fn with_domain(self) -> Self {
        Self { domain: Some(DOMAIN), ..self }
    }
}

/// Starts a program that answers HTTP once it is ready, whatever the status.
fn start_program(
    program: &Path,
    args: impl Fn(&Path, &str) -> Vec<OsString>,
    env: &[(&str, &str)],
) -> Result<SupervisedServer, String> {
    let is_ready = |endpoint: &str| http_status(endpoint, "GET", "/", b"").is_ok();
    let start = panic::AssertUnwindSafe(|| SupervisedServer::start(program, args, env, is_ready));
    panic::catch_unwind(start).map_err(|_| format!("{} did not start", program.display()))
}
