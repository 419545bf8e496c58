//! versitygw: a second S3 server, with users and with bucket policies that name them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::installed_program::candidates;
use crate::supervised_server::{SupervisedServer, http_status, make_dir};
use crate::{Credentials, report_missing};

/// A running versitygw with a data directory of its own. It ends when this is dropped or when this process ends.
#[derive(Debug)]
pub struct Versitygw {
    program: PathBuf,
    root: Credentials,
    server: SupervisedServer,
}

impl Versitygw {
    /// Starts versitygw (`$VERSITYGW`, else from PATH, else from the cache directory) on a free loopback port.
    ///
    /// Returns None, after a line on standard output, if it is not installed; panics if `CI=true`.
    pub fn start() -> Option<Self> {
        let Some(program) = candidates("VERSITYGW", "versitygw").into_iter().next() else {
            report_missing("versitygw", "`cargo xtask minio` installs it, or set $VERSITYGW");
            return None;
        };
        let root = Credentials::random();
        let env = [("ROOT_ACCESS_KEY", root.access_key.as_str()), ("ROOT_SECRET_KEY", &root.secret_key)];
        let args = |dir: &Path, endpoint: &str| {
            let (iam, data) = (dir.join("iam"), dir.join("data"));
            make_dir(&iam);
            make_dir(&data);
            vec!["--port".into(), endpoint.into(), "--iam-dir".into(), iam.into(), "posix".into(), data.into()]
        };
        let is_ready = |endpoint: &str| http_status(endpoint, "GET", "/", b"").is_ok();
        let server = SupervisedServer::start(&program, args, &env, is_ready);
        Some(Self { program, root, server })
    }

    /// Returns the versitygw that all tests of this process share.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Versitygw>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// Returns the server's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.server.endpoint.clone()
    }

    /// Returns the administrator's credentials.
    pub fn root(&self) -> Credentials {
        self.root.clone()
    }

    /// Creates a user who has no permission until a bucket policy names the access key.
    pub fn add_user(&self) -> Credentials {
        let user = Credentials::random();
        let mut command = Command::new(&self.program);
        command.args(["admin", "--access", &self.root.access_key, "--secret", &self.root.secret_key]);
        command.args(["--endpoint-url", &format!("http://{}", self.server.endpoint), "create-user"]);
        command.args(["--access", &user.access_key, "--secret", &user.secret_key, "--role", "user"]);
        let output = command.stdin(Stdio::null()).output().expect("versitygw admin");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "versitygw admin create-user: {stderr}");
        user
    }
}
