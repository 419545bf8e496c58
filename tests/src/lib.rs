//! Support for the end-to-end tests: scratch directories in which pipelines run as a user types them, a real MinIO,
//! the embedded S3 server, a real Nix, and file trees to compare. No mocks.
//!
//! Everything here panics when something does not go as it should: a failed helper is a failed test.

// This crate is test support in a library: a panic is how it reports, and its loud lines belong to the test's output.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc, clippy::print_stdout)]
// Helpers run for what they do as often as for what they return.
#![allow(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod embedded;
pub mod fault_proxy;
mod listener;
pub mod lying_server;
mod minio;
mod mutation;
pub mod nix;
mod random;
mod scratch;
mod server;
pub mod tls_front;
mod tree;
mod versitygw;

use std::env;
use std::fmt;
use std::path::PathBuf;

pub use embedded::EmbeddedS3;
pub use minio::Minio;
pub use mutation::mutate;
pub use random::{Random, unique};
pub use scratch::{Outcome, Scratch, TIME_LIMIT, remove_tree};
pub use server::http_status;
pub use tree::{Contents, Kind, Node, make_tree, tree};
pub use versitygw::Versitygw;

/// Directory of the built tools: `$NIX_S3_CACHE_BIN`, else the target directory that the running test lies in.
///
/// `cargo test` does not build the tools of other packages: `cargo build --workspace --bins` does, and
/// `cargo xtask test` runs it first.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = env::var_os("NIX_S3_CACHE_BIN") {
        return PathBuf::from(dir);
    }
    let exe = env::current_exe().expect("the path of the running test");
    let dir = exe.parent().expect("an executable lies in a directory");
    if dir.ends_with("deps") { dir.parent().expect("deps lies in a directory").to_owned() } else { dir.to_owned() }
}

/// The top directory of the repository.
pub fn repository() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().expect("the tests lie in the repository").to_owned()
}

/// A valid-looking store path that is the same for the same arguments: `/nix/store/<32 characters>-name`.
pub fn store_path(name: &str, seed: u64) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut random = Random::new(seed ^ 0x5170_12e9_a7d1_c3b5);
    for byte in name.bytes() {
        random = Random::new(random.next() ^ u64::from(byte));
    }
    let hash: String = (0..32).map(|_| char::from(ALPHABET[random.below(32)])).collect();
    format!("/nix/store/{hash}-{name}")
}

/// An access key and its secret.
#[derive(Clone)]
pub struct Credentials {
    /// What AWS_ACCESS_KEY_ID says.
    pub access_key: String,
    /// What AWS_SECRET_ACCESS_KEY says.
    pub secret_key: String,
}

impl Credentials {
    /// Fresh random credentials.
    pub fn random() -> Self {
        Self { access_key: unique("user"), secret_key: unique("secret") + &unique("") }
    }

    /// Gives these credentials to the commands that run in `scratch` from now on.
    pub fn apply(&self, scratch: &mut Scratch) {
        scratch.env("AWS_ACCESS_KEY_ID", &self.access_key);
        scratch.env("AWS_SECRET_ACCESS_KEY", &self.secret_key);
    }
}

/// The secret stays out of messages.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.access_key)
    }
}

/// Whether this runs in CI, where what cannot run is a failure instead of a loud line.
fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}

/// Says loudly that `what` is absent and that the test does not run; panics in CI.
fn absent(what: &str, remedy: &str) {
    assert!(!in_ci(), "{what} is absent, and CI=true asks for it; {remedy}");
    println!("NOT RUN: {what} is absent; {remedy}");
}
