//! A real S3 server of another make: users, and bucket policies that name them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::minio::{START_LIMIT, candidates};
use crate::server::{Server, free_port, http_status};
use crate::{Credentials, absent};

/// A running versitygw with a data directory of its own. It ends when this is dropped or when the test process ends.
#[derive(Debug)]
pub struct Versitygw {
    program: PathBuf,
    endpoint: String,
    root: Credentials,
    _server: Server,
}

impl Versitygw {
    /// Starts versitygw (`$VERSITYGW`, else from PATH, else from the cache directory) on a free loopback port.
    ///
    /// None where it is absent, after a loud line; a panic where `CI=true`.
    pub fn start() -> Option<Self> {
        let Some(program) = candidates("VERSITYGW", "versitygw").into_iter().next() else {
            absent("versitygw", "`cargo xtask minio` gets it, or set $VERSITYGW");
            return None;
        };
        let root = Credentials::random();
        let started = (0..5).find_map(|_| serve(&program, &root));
        let (server, endpoint) = started.expect("versitygw starts on one of five free ports");
        Some(Self { program, endpoint, root, _server: server })
    }

    /// One for all tests of a test binary.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Versitygw>> = OnceLock::new();
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

    /// A fresh user who may do nothing until a bucket policy names the access key.
    pub fn add_user(&self) -> Credentials {
        let user = Credentials::random();
        let mut command = Command::new(&self.program);
        command.args(["admin", "--access", &self.root.access_key, "--secret", &self.root.secret_key]);
        command.args(["--endpoint-url", &format!("http://{}", self.endpoint), "create-user"]);
        command.args(["--access", &user.access_key, "--secret", &user.secret_key, "--role", "user"]);
        let output = command.stdin(Stdio::null()).output().expect("versitygw admin");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "versitygw admin create-user: {said}");
        user
    }
}

/// Starts it and waits until it answers; None if it ended, as it does when the port was taken.
fn serve(program: &Path, root: &Credentials) -> Option<(Server, String)> {
    let dir = tempfile::Builder::new().prefix("nix-s3-cache-versitygw-").tempdir().expect("a directory for versitygw");
    let dir = dir.keep();
    for name in ["data", "iam"] {
        fs::create_dir(dir.join(name)).expect("a directory for versitygw");
    }
    let endpoint = format!("127.0.0.1:{}", free_port());
    let args: [OsString; 6] = [
        "--port".into(),
        endpoint.clone().into(),
        "--iam-dir".into(),
        dir.join("iam").into(),
        "posix".into(),
        dir.join("data").into(),
    ];
    let env = [("ROOT_ACCESS_KEY", root.access_key.as_str()), ("ROOT_SECRET_KEY", &root.secret_key)];
    let mut server = Server::start(program, &args, &env, &dir, &dir.join("log")).expect("bash starts versitygw");
    let start = Instant::now();
    while start.elapsed() < START_LIMIT && !server.ended() {
        if http_status(&endpoint, "GET", "/", b"").is_ok() {
            return Some((server, endpoint));
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}
