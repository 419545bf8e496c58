//! The embedded S3 server: no users and no policies, but fast and always available.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use walkdir::WalkDir;

use crate::supervised_server::{make_dir, spawn_endpoint_server};
use crate::{Credentials, bin_dir, cache_url, unique};

/// A running `embedded-s3`. It ends when this is dropped or when this process ends.
#[derive(Debug)]
pub struct EmbeddedS3 {
    child: Child,
    endpoint: String,
    credentials: Credentials,
    root: PathBuf,
}

impl EmbeddedS3 {
    /// Starts a server with an empty root directory, which is removed when the server ends.
    #[allow(clippy::new_without_default)] // it starts a process
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server like [`EmbeddedS3::start`] that ignores the conditions of writes.
    pub fn start_ignoring_conditions() -> Self {
        Self::start_with(&["--ignore-conditions"])
    }

    fn start_with(options: &[&str]) -> Self {
        let root = tempfile::Builder::new().prefix("nix-s3-cache-s3-").tempdir().expect("a directory for the server");
        let root = root.keep();
        let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        args.extend([OsStr::new("--remove"), root.as_os_str(), root.as_os_str()]);
        Self::spawn(&args, root.clone())
    }

    /// Starts a server whose buckets are the directories in `root`, which stays when the server ends.
    pub fn start_in(root: &Path) -> Self {
        make_dir(root);
        Self::spawn(&[root.as_os_str()], root.to_owned())
    }

    fn spawn(args: &[&OsStr], root: PathBuf) -> Self {
        let credentials = Credentials::random();
        let env = [
            ("EMBEDDED_S3_ACCESS_KEY", credentials.access_key.as_str()),
            ("EMBEDDED_S3_SECRET_KEY", &credentials.secret_key),
        ];
        let (child, endpoint) = spawn_endpoint_server(&bin_dir().join("embedded-s3"), args, &env);
        Self { child, endpoint, credentials, root }
    }

    /// Returns the server that all tests of this process share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<EmbeddedS3> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Returns the only credentials that the server accepts.
    pub fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    /// Creates a bucket and returns its name.
    pub fn make_bucket(&self) -> String {
        let bucket = unique("bucket-");
        self.make_named_bucket(&bucket);
        bucket
    }

    /// Creates a bucket of that name.
    pub fn make_named_bucket(&self, bucket: &str) {
        fs::create_dir(self.root.join(bucket)).expect("a directory for the bucket");
    }

    /// Returns the `s3://` URL of the bucket.
    pub fn cache_url(&self, bucket: &str) -> String {
        cache_url(&self.endpoint, bucket)
    }

    /// Returns the `http://` URL of the bucket; anonymous clients may read.
    pub fn http_url(&self, bucket: &str) -> String {
        format!("http://{}/{bucket}", self.endpoint)
    }

    /// Returns the keys of the bucket's objects, sorted.
    pub fn objects(&self, bucket: &str) -> Vec<String> {
        let dir = self.root.join(bucket);
        let files = WalkDir::new(&dir).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
        let mut keys: Vec<_> = files.map(|entry| key_of(&dir, entry.path())).collect();
        keys.sort_unstable();
        keys
    }

    /// Writes an object directly to the server's file system, as another client would.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        self.forget(bucket, key);
        let path = self.root.join(bucket).join(key);
        fs::create_dir_all(path.parent().unwrap()).expect("a directory for the object");
        fs::write(path, bytes).expect("the file of the object");
    }

    /// Removes an object, which must exist.
    pub fn remove(&self, bucket: &str, key: &str) {
        self.forget(bucket, key);
        fs::remove_file(self.root.join(bucket).join(key)).expect("the file of the object");
    }

    /// Removes what the server has stored about an object, such as its entity tag.
    fn forget(&self, bucket: &str, key: &str) {
        let name = format!(".bucket-{}.object-{}", BASE64.encode(bucket), BASE64.encode(key));
        for kind in ["internal", "metadata"] {
            // It exists only if the object was written by a request.
            drop(fs::remove_file(self.root.join(format!("{name}.{kind}.json"))));
        }
    }

    /// Returns the file of an object.
    pub fn path(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    /// Returns the bytes of an object, which must exist.
    pub fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        fs::read(self.root.join(bucket).join(key)).expect("the file of the object")
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

fn key_of(bucket: &Path, file: &Path) -> String {
    file.strip_prefix(bucket).unwrap().to_str().expect("keys are UTF-8").to_owned()
}
