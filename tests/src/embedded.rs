//! The embedded S3 server: no users and no policies, but quick and always there.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use walkdir::WalkDir;

use crate::minio::cache_url;
use crate::{Credentials, bin_dir, unique};

/// A running `embedded-s3`. It ends when this is dropped or when the test process ends.
#[derive(Debug)]
pub struct EmbeddedS3 {
    child: Child,
    endpoint: String,
    credentials: Credentials,
    root: PathBuf,
}

impl EmbeddedS3 {
    /// Starts one with an empty root.
    #[allow(clippy::new_without_default)] // it starts a process
    pub fn start() -> Self {
        let root = tempfile::Builder::new().prefix("nix-s3-cache-s3-").tempdir().expect("a directory for the server");
        let root = root.keep();
        let credentials = Credentials::random();
        let program = bin_dir().join("embedded-s3");
        let mut child = Command::new(&program)
            .arg("--remove")
            .arg(&root)
            .arg(&root)
            .env("EMBEDDED_S3_ACCESS_KEY", &credentials.access_key)
            .env("EMBEDDED_S3_SECRET_KEY", &credentials.secret_key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt is for the test; the server sees its standard input close and removes its directory.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run `cargo build --workspace --bins`", program.display()));
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe from the server");
        BufReader::new(stdout).read_line(&mut line).expect("a line from the server");
        let endpoint = line.strip_prefix("ENDPOINT ").expect("the server says where it listens").trim().to_owned();
        Self { child, endpoint, credentials, root }
    }

    /// One server for all tests of a test binary.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<EmbeddedS3> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The only credentials that it takes.
    pub fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    /// A fresh bucket; returns its name.
    pub fn make_bucket(&self) -> String {
        let bucket = unique("bucket-");
        fs::create_dir(self.root.join(&bucket)).expect("a directory for the bucket");
        bucket
    }

    /// The bucket as our tools take it.
    pub fn cache_url(&self, bucket: &str) -> String {
        cache_url(&self.endpoint, bucket)
    }

    /// The bucket as an HTTP cache; anonymous readers are let in.
    pub fn http_url(&self, bucket: &str) -> String {
        format!("http://{}/{bucket}", self.endpoint)
    }

    /// The keys of the bucket's objects, sorted.
    pub fn objects(&self, bucket: &str) -> Vec<String> {
        let dir = self.root.join(bucket);
        let files = WalkDir::new(&dir).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
        let mut keys: Vec<_> = files.map(|entry| key_of(&dir, entry.path())).collect();
        keys.sort_unstable();
        keys
    }

    /// Puts an object behind the server's back.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        let path = self.root.join(bucket).join(key);
        fs::create_dir_all(path.parent().unwrap()).expect("a directory for the object");
        fs::write(path, bytes).expect("the object's file");
    }

    /// Removes an object, which must be there.
    pub fn remove(&self, bucket: &str, key: &str) {
        fs::remove_file(self.root.join(bucket).join(key)).expect("the object's file");
    }

    /// The bytes of an object, which must be there.
    pub fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        fs::read(self.root.join(bucket).join(key)).expect("the object's file")
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

fn key_of(bucket: &Path, file: &Path) -> String {
    file.strip_prefix(bucket).unwrap().to_str().expect("keys are text").to_owned()
}
