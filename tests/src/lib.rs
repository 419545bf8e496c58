//! Support for the end-to-end tests, the benchmarks and the demo: scratch directories in which pipelines run as a user
//! types them, real S3 servers (MinIO, versitygw), the embedded one, servers and proxies that misbehave, a real Nix,
//! and file trees to compare. There are no mocks.
//!
//! Functions panic on failure unless they return a `Result`: in a test, a failed helper is a failed test.

// A panic is how this crate reports a failure, and its lines on standard output belong to the output of the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc, clippy::print_stdout)]
// Helpers are often called for their effect.
#![allow(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod delay_proxy;
mod embedded_s3;
pub mod fault_proxy;
pub mod generated_closure;
mod installed_program;
mod loopback_listener;
pub mod lying_server;
mod minio;
mod mutation;
pub mod nix;
pub mod pipeline;
pub mod quirks;
mod random;
mod request_head;
pub mod s3;
mod scratch;
pub mod service_profiles;
mod store_paths;
mod supervised_server;
pub mod synthetic_bucket;
pub mod tls_front;
mod tree;
mod versitygw;

use std::env;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

pub use delay_proxy::DelayProxy;
pub use embedded_s3::EmbeddedS3;
pub use installed_program::cache_dir;
pub use minio::{Minio, MinioOptions, mc_target};
pub use mutation::mutate;
pub use random::{Random, random_seed, unique};
pub use scratch::{CommandOutput, Scratch, TIMEOUT_SECONDS, remove_tree, split_hint};
pub use store_paths::{random_store_path, sha256_base32, store_path};
pub use supervised_server::{SupervisedServer, free_endpoint, http_status};
pub use tree::{Contents, Kind, Node, make_tree, tree};
pub use versitygw::Versitygw;

/// Returns the directory of the built tools: `$NIX_S3_CACHE_BIN`, else the target directory of the running program.
///
/// `cargo test` does not build the tools of other packages: `cargo build --workspace --bins` does, and
/// `cargo xtask test` runs it first.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = env::var_os("NIX_S3_CACHE_BIN") {
        return PathBuf::from(dir);
    }
    let exe = env::current_exe().expect("the path of the running program");
    let dir = exe.parent().expect("a program is in a directory");
    if dir.ends_with("deps") { dir.parent().expect("deps is in a directory").to_owned() } else { dir.to_owned() }
}

/// Returns the top directory of the repository.
pub fn repository() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().expect("the tests are in the repository").to_owned()
}

/// Returns the `s3://` URL of a bucket, or of a prefix in it, of the server at `endpoint`.
pub fn cache_url(endpoint: &str, bucket: &str) -> String {
    format!("s3://{bucket}?endpoint=http://{endpoint}&region=us-east-1")
}

/// Returns how many processors are available.
pub fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// An access key and its secret.
#[derive(Clone)]
pub struct Credentials {
    /// AWS_ACCESS_KEY_ID.
    pub access_key: String,
    /// AWS_SECRET_ACCESS_KEY.
    pub secret_key: String,
}

impl Credentials {
    /// Generates random credentials.
    pub fn random() -> Self {
        Self { access_key: unique("user"), secret_key: unique("secret") + &unique("") }
    }

    /// Sets the credentials in the environment of later commands of `scratch`.
    pub fn apply(&self, scratch: &mut Scratch) {
        scratch.env("AWS_ACCESS_KEY_ID", &self.access_key);
        scratch.env("AWS_SECRET_ACCESS_KEY", &self.secret_key);
    }

    /// Sets the credentials in the environment of a command.
    pub fn authorize(&self, command: &mut Command) {
        command.env("AWS_ACCESS_KEY_ID", &self.access_key).env("AWS_SECRET_ACCESS_KEY", &self.secret_key);
    }
}

/// Shows the access key only.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.access_key)
    }
}

/// Prints that a test does not run because `program` is not installed; panics if `CI=true`.
pub fn report_missing(program: &str, remedy: &str) {
    let in_ci = env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!in_ci, "{program} is not installed, which CI=true requires; {remedy}");
    println!("NOT RUN: {program} is not installed; {remedy}");
}
