//! A real S3 server with users and policies.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::server::{Server, free_port, http_status};
use crate::{Credentials, Scratch, absent, unique};

/// How long a server may take until it answers.
pub(crate) const START_LIMIT: Duration = Duration::from_mins(1);

/// A running MinIO with a data directory of its own. It ends when this is dropped or when the test process ends.
#[derive(Debug)]
pub struct Minio {
    endpoint: String,
    root: Credentials,
    mc: PathBuf,
    /// Configuration of mc and policy files, in the server's directory and so removed with it.
    config: PathBuf,
    _server: Server,
}

impl Minio {
    /// Starts MinIO (`$MINIO`, else from PATH, else from the cache directory) on a free loopback port.
    ///
    /// None where it or its client is absent, after a loud line; a panic where `CI=true`.
    pub fn start() -> Option<Self> {
        let (Some(minio), Some(mc)) = (candidates("MINIO", "minio").into_iter().next(), find_mc()) else {
            absent("MinIO (or its client mc)", "`cargo xtask minio` gets both, or set $MINIO and $MC");
            return None;
        };
        let root = Credentials::random();
        // Another process may take the port between its choice and the server's start.
        let started = (0..5).find_map(|_| serve(&minio, &root));
        let (server, endpoint, config) = started.expect("MinIO starts on one of five free ports");
        Some(Self { endpoint, root, mc, config, _server: server })
    }

    /// One MinIO for all tests of a test binary.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Minio>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The administrator's credentials.
    pub fn root(&self) -> Credentials {
        self.root.clone()
    }

    /// A fresh bucket; returns its name.
    pub fn make_bucket(&self) -> String {
        let bucket = unique("bucket-");
        self.mc(&["mb", &target(&bucket, "")]);
        bucket
    }

    /// The bucket as our tools take it.
    pub fn cache_url(&self, bucket: &str) -> String {
        cache_url(&self.endpoint, bucket)
    }

    /// The bucket as an HTTP cache, for readers without credentials.
    pub fn http_url(&self, bucket: &str) -> String {
        format!("http://{}/{bucket}", self.endpoint)
    }

    /// A fresh user who may do what the IAM policy says and nothing else.
    pub fn add_user(&self, policy_json: &str) -> Credentials {
        let user = Credentials::random();
        // By standard input, so that no secret shows in the list of processes.
        let keys = format!("{}\n{}\n", user.access_key, user.secret_key);
        self.mc_with_input(&["admin", "user", "add", ALIAS], keys.as_bytes());
        let policy = unique("policy-");
        let file = self.config.join(&policy);
        fs::write(&file, policy_json).expect("a policy file");
        self.mc(&["admin", "policy", "create", ALIAS, &policy, &file.to_string_lossy()]);
        self.mc(&["admin", "policy", "attach", ALIAS, &policy, "--user", &user.access_key]);
        user
    }

    /// Gives the bucket a bucket policy, as `mc anonymous set-json` does.
    pub fn set_bucket_policy(&self, bucket: &str, policy_json: &str) {
        let file = self.config.join(unique("policy-"));
        fs::write(&file, policy_json).expect("a policy file");
        self.mc(&["anonymous", "set-json", &file.to_string_lossy(), &target(bucket, "")]);
    }

    /// The keys of the bucket's objects, sorted.
    pub fn objects(&self, bucket: &str) -> Vec<String> {
        let listing = String::from_utf8(self.mc(&["ls", "--recursive", "--json", &target(bucket, "")])).unwrap();
        let mut keys: Vec<_> = listing.lines().map(key_of).collect();
        keys.sort_unstable();
        keys
    }

    /// Puts an object.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        self.mc_with_input(&["pipe", "--quiet", &target(bucket, key)], bytes);
    }

    /// Removes an object, which must be there.
    pub fn remove(&self, bucket: &str, key: &str) {
        self.mc(&["rm", &target(bucket, key)]);
    }

    /// The bytes of an object, which must be there.
    pub fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.mc(&["cat", &target(bucket, key)])
    }

    /// Runs MinIO's client as the administrator, who is the alias `cache`; returns its standard
    /// output. For what has no method here.
    pub fn mc(&self, args: &[&str]) -> Vec<u8> {
        self.mc_with_input(args, b"")
    }

    /// Makes `mc … ALIAS/BUCKET` work as the administrator in the scripts of `scratch`.
    pub fn mc_alias(&self, scratch: &mut Scratch, alias: &str) {
        let config = scratch.path().join("mc");
        scratch.env(format!("MC_HOST_{alias}"), self.mc_host()).env("MC_CONFIG_DIR", config);
    }

    fn mc_host(&self) -> String {
        format!("http://{}:{}@{}", self.root.access_key, self.root.secret_key, self.endpoint)
    }

    fn mc_with_input(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut command = Command::new(&self.mc);
        command.arg("--config-dir").arg(&self.config).args(args).env(format!("MC_HOST_{ALIAS}"), self.mc_host());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("mc");
        let mut pipe = child.stdin.take().expect("a pipe to mc");
        let output = thread::scope(|scope| {
            scope.spawn(move || drop(pipe.write_all(input)));
            child.wait_with_output().expect("the output of mc")
        });
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mc {args:?}: {}\n{stderr}", output.status);
        output.stdout
    }
}

/// Where the bucket `bucket` of the server at `endpoint` is, as our tools and Nix write it.
pub fn cache_url(endpoint: &str, bucket: &str) -> String {
    format!("s3://{bucket}?endpoint={endpoint}&scheme=http&region=us-east-1")
}

/// The server's name among those that mc knows.
const ALIAS: &str = "cache";

fn target(bucket: &str, key: &str) -> String {
    format!("{ALIAS}/{bucket}/{key}")
}

fn key_of(line: &str) -> String {
    let entry: Value = serde_json::from_str(line).expect("a line of JSON from mc ls");
    entry["key"].as_str().expect("mc ls names the key").to_owned()
}

/// Starts MinIO and waits until it answers; None if it ended, as it does when the port was taken.
fn serve(minio: &Path, root: &Credentials) -> Option<(Server, String, PathBuf)> {
    let dir = tempfile::Builder::new().prefix("nix-s3-cache-minio-").tempdir().expect("a directory for MinIO");
    let dir = dir.keep();
    let config = dir.join("mc");
    fs::create_dir(&config).expect("a directory for mc");
    let endpoint = format!("127.0.0.1:{}", free_port());
    let args: [OsString; 6] = [
        "server".into(),
        dir.join("data").into(),
        "--address".into(),
        endpoint.clone().into(),
        "--certs-dir".into(),
        dir.join("certs").into(),
    ];
    let env = [
        ("MINIO_ROOT_USER", root.access_key.as_str()),
        ("MINIO_ROOT_PASSWORD", &root.secret_key),
        ("MINIO_BROWSER", "off"),
        // What encryption at rest needs; the key is of no use to anybody.
        ("MINIO_KMS_SECRET_KEY", "cache-key:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
        ("MINIO_UPDATE", "off"),
    ];
    let mut server = Server::start(minio, &args, &env, &dir, &dir.join("log")).expect("bash starts MinIO");
    let start = Instant::now();
    while start.elapsed() < START_LIMIT && !server.ended() {
        if matches!(http_status(&endpoint, "GET", "/minio/health/ready", b""), Ok(200)) {
            return Some((server, endpoint, config));
        }
        thread::sleep(Duration::from_millis(50));
    }
    None
}

/// MinIO's client: `$MC`, else from PATH, else from the cache directory.
pub fn find_mc() -> Option<PathBuf> {
    static MC: OnceLock<Option<PathBuf>> = OnceLock::new();
    MC.get_or_init(|| candidates("MC", "mc").into_iter().find(|path| is_minio_client(path))).clone()
}

/// Midnight Commander has the same name.
fn is_minio_client(mc: &Path) -> bool {
    let output = Command::new(mc).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("MinIO"))
}

/// Where a program may be: what an environment variable says, else PATH, then where `cargo xtask minio` puts it.
pub(crate) fn candidates(variable: &str, name: &str) -> Vec<PathBuf> {
    if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
        return vec![PathBuf::from(path)];
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(cache.map(|cache| cache.join("nix-s3-cache/bin")));
    dirs.map(|dir| dir.join(name)).filter(|path| path.is_file()).collect()
}
