//! MinIO: a real S3 server with users and policies.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::installed_program::candidates;
use crate::s3::{Response, S3, path_of};
use crate::supervised_server::{SupervisedServer, free_port, http_get, http_status, make_dir};
use crate::{Credentials, Scratch, cache_url, report_missing, unique};

/// The name of the server in the configuration of mc.
const ALIAS: &str = "cache";

/// A running MinIO with a data directory of its own. It ends when this is dropped or when this process ends.
#[derive(Debug)]
pub struct Minio {
    program: PathBuf,
    root: Credentials,
    mc: PathBuf,
    /// Configuration of mc and policy files, in the server's directory and so removed with it.
    config: PathBuf,
    /// `127.0.0.1:PORT` of the console, if it runs.
    console: Option<String>,
    /// The region that requests are signed for.
    region: String,
    server: SupervisedServer,
}

/// How MinIO runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct MinioOptions<'a> {
    /// The region that requests must be signed for; any by default.
    pub region: Option<&'a str>,
    /// Whether the console runs, on a port of its own.
    pub has_console: bool,
    /// Whether the API is served over TLS, with a self-signed certificate.
    pub has_tls: bool,
    /// The domain below which host names name buckets.
    pub domain: Option<&'a str>,
}

impl Minio {
    /// Starts MinIO (`$MINIO`, else from PATH, else from the cache directory) on a free loopback port.
    ///
    /// Returns None, after a line on standard output, if MinIO or its client is not installed; panics if `CI=true`.
    pub fn start() -> Option<Self> {
        Self::start_with(MinioOptions::default())
    }

    /// Starts MinIO with options; see [`Minio::start`]. With TLS, mc cannot connect to it.
    pub fn start_with(options: MinioOptions<'_>) -> Option<Self> {
        let (Some(minio), Some(mc)) = (candidates("MINIO", "minio").into_iter().next(), find_mc()) else {
            report_missing("MinIO (or its client mc)", "`cargo xtask minio` installs both, or set $MINIO and $MC");
            return None;
        };
        let root = Credentials::random();
        let console = options.has_console.then(|| format!("127.0.0.1:{}", free_port()));
        let env = [
            ("MINIO_REGION", options.region.unwrap_or_default()),
            ("MINIO_DOMAIN", options.domain.unwrap_or_default()),
            ("MINIO_ROOT_USER", root.access_key.as_str()),
            ("MINIO_ROOT_PASSWORD", &root.secret_key),
            ("MINIO_BROWSER", if options.has_console { "on" } else { "off" }),
            // Encryption at rest needs a key, which protects nothing here.
            ("MINIO_KMS_SECRET_KEY", "cache-key:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            ("MINIO_UPDATE", "off"),
            ("MINIO_PROMETHEUS_AUTH_TYPE", "public"),
        ];
        let args = |dir: &Path, endpoint: &str| {
            let (data, certs) = (dir.join("data"), dir.join("certs"));
            if options.has_tls {
                write_certificate(&certs);
            }
            let mut args: Vec<OsString> = vec!["server".into(), data.into(), "--address".into(), endpoint.into()];
            args.extend(["--certs-dir".into(), certs.into()]);
            args.extend(console.iter().flat_map(|console| ["--console-address".into(), console.into()]));
            args
        };
        let region = options.region.unwrap_or("us-east-1").to_owned();
        let is_ready = |endpoint: &str| {
            // A server that uses TLS answers 400 in plain HTTP.
            if options.has_tls {
                return http_status(endpoint, "GET", "/", b"").is_ok_and(|status| status == 400);
            }
            // Even a server that reports that it is ready refuses requests at first, as "not initialized".
            let s3 = S3 { endpoint: endpoint.to_owned(), credentials: Some(root.clone()), region: region.clone() };
            s3.send("GET", "/", &[], b"").is_ok_and(|response| response.status == 200)
        };
        let server = SupervisedServer::start(&minio, args, &env, is_ready);
        let config = server.dir.join("mc");
        make_dir(&config);
        Some(Self { program: minio, root, mc, config, console, region, server })
    }

    /// Returns the MinIO that all tests of this process share.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Minio>> = OnceLock::new();
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

    /// Returns `127.0.0.1:PORT` of the console, which must run.
    pub fn console(&self) -> &str {
        self.console.as_deref().expect("a console")
    }

    /// Returns the administrator's credentials.
    pub fn root(&self) -> Credentials {
        self.root.clone()
    }

    /// Creates a bucket and returns its name.
    pub fn make_bucket(&self) -> String {
        let bucket = unique("bucket-");
        self.request("PUT", &format!("/{bucket}"), b"");
        bucket
    }

    /// Lets anonymous clients read and write the bucket.
    pub fn make_public(&self, bucket: &str) {
        self.mc(&["anonymous", "set", "public", &mc_target(bucket)]);
    }

    /// Returns the `s3://` URL of the bucket.
    pub fn cache_url(&self, bucket: &str) -> String {
        cache_url(&self.server.endpoint, bucket)
    }

    /// Returns the `http://` URL of the bucket, for clients without credentials.
    pub fn http_url(&self, bucket: &str) -> String {
        format!("http://{}/{bucket}", self.server.endpoint)
    }

    /// Creates a user with that IAM policy and returns its credentials.
    pub fn add_user(&self, policy_json: &str) -> Credentials {
        let user = Credentials::random();
        // On standard input, so that no secret appears in the list of processes.
        let keys = format!("{}\n{}\n", user.access_key, user.secret_key);
        self.mc_with_input(&["admin", "user", "add", ALIAS], keys.as_bytes());
        let policy = unique("policy-");
        let file = self.config.join(&policy);
        fs::write(&file, policy_json).expect("a policy file");
        self.mc(&["admin", "policy", "create", ALIAS, &policy, &file.to_string_lossy()]);
        self.mc(&["admin", "policy", "attach", ALIAS, &policy, "--user", &user.access_key]);
        user
    }

    /// Sets the bucket policy, as `mc anonymous set-json` does.
    pub fn set_bucket_policy(&self, bucket: &str, policy_json: &str) {
        let file = self.config.join(unique("policy-"));
        fs::write(&file, policy_json).expect("a policy file");
        self.mc(&["anonymous", "set-json", &file.to_string_lossy(), &mc_target(bucket)]);
    }

    /// Returns the keys of the bucket's objects, sorted.
    pub fn objects(&self, bucket: &str) -> Vec<String> {
        self.list(bucket).into_iter().map(|(key, _)| key).collect()
    }

    /// Returns the total size of the bucket's objects in bytes.
    pub fn size(&self, bucket: &str) -> u64 {
        self.list(bucket).iter().map(|(_, size)| size).sum()
    }

    /// Returns the keys of the bucket's multipart uploads that are neither completed nor aborted, sorted.
    pub fn incomplete_uploads(&self, bucket: &str) -> Vec<String> {
        let listing = self.mc(&["ls", "--recursive", "--incomplete", "--json", &mc_target(bucket)]);
        let listing = String::from_utf8(listing).expect("JSON is UTF-8");
        let entries = listing.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        let mut keys: Vec<String> = entries.map(|entry| entry["key"].as_str().expect("a key").to_owned()).collect();
        keys.sort_unstable();
        keys
    }

    /// Returns the directories of all multipart uploads in progress, on MinIO's disk: what a listing of uploads
    /// contains depends on the release.
    pub fn upload_dirs(&self) -> Vec<PathBuf> {
        let children = |dir: &Path| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        let objects = children(&self.server.dir.join("data/.minio.sys/multipart"));
        objects.iter().flat_map(|object| children(object)).collect()
    }

    /// Returns how many S3 requests the server has answered so far.
    pub fn requests(&self) -> u64 {
        let of_s3 = |labels: &str| labels.contains("type=\"s3\"");
        // Large counts are printed as floating-point numbers.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count
        let sum = self.metric("api/requests", "minio_api_requests_total", of_s3) as u64;
        sum
    }

    /// Returns the user and system time that the server has used so far.
    pub fn processor_time(&self) -> Duration {
        Duration::from_secs_f64(self.metric("system/process", "minio_system_process_cpu_total_seconds", |_| true))
    }

    /// Returns the sum of the samples of a metric whose labels are selected.
    fn metric(&self, group: &str, name: &str, selects: impl Fn(&str) -> bool) -> f64 {
        let metrics = http_get(&self.server.endpoint, &format!("/minio/metrics/v3/{group}")).expect("MinIO's metrics");
        let samples = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' '));
        samples.filter(|(labels, _)| selects(labels)).filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
    }

    /// Writes an object.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        self.request("PUT", &path_of(bucket, key), bytes);
    }

    /// Removes an object, which must exist.
    pub fn remove(&self, bucket: &str, key: &str) {
        self.request("HEAD", &path_of(bucket, key), b"");
        self.request("DELETE", &path_of(bucket, key), b"");
    }

    /// Returns the bytes of an object, which must exist.
    pub fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.request("GET", &path_of(bucket, key), b"").body
    }

    /// Sends a request of the administrator, which must succeed.
    fn request(&self, method: &str, target: &str, body: &[u8]) -> Response {
        let response = self.s3().send(method, target, &[], body).and_then(Response::success);
        response.unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    fn list(&self, bucket: &str) -> Vec<(String, u64)> {
        self.s3().list(bucket).unwrap_or_else(|error| panic!("cannot list {bucket}: {error}"))
    }

    /// Returns a client of the administrator. A process of mc for each request takes a tenth of a second.
    fn s3(&self) -> S3 {
        S3 { endpoint: self.endpoint(), credentials: Some(self.root()), region: self.region.clone() }
    }

    /// Runs MinIO's client as the administrator, whose alias is `cache`, and returns its standard output.
    pub fn mc(&self, args: &[&str]) -> Vec<u8> {
        self.mc_with_input(args, b"")
    }

    /// Returns a command of MinIO's client as the administrator of the server at `endpoint`: this server, or a proxy
    /// in front of it.
    pub fn mc_command(&self, endpoint: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.mc);
        command.arg("--config-dir").arg(&self.config).arg("--quiet").args(args);
        command.env(format!("MC_HOST_{ALIAS}"), self.mc_host(endpoint));
        command
    }

    /// Makes `mc … ALIAS/BUCKET` work as the administrator in the scripts of `scratch`.
    pub fn mc_alias(&self, scratch: &mut Scratch, alias: &str) {
        let config = scratch.path().join("mc");
        scratch.env(format!("MC_HOST_{alias}"), self.mc_host(&self.server.endpoint)).env("MC_CONFIG_DIR", config);
    }

    fn mc_host(&self, endpoint: &str) -> String {
        format!("http://{}:{}@{endpoint}", self.root.access_key, self.root.secret_key)
    }

    fn mc_with_input(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut command = Command::new(&self.mc);
        command.arg("--config-dir").arg(&self.config).args(args);
        command.env(format!("MC_HOST_{ALIAS}"), self.mc_host(&self.server.endpoint));
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

/// Writes a self-signed certificate and its key where MinIO looks for them.
fn write_certificate(dir: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    make_dir(dir);
    fs::write(dir.join("public.crt"), made.cert.pem()).expect("a certificate file");
    fs::write(dir.join("private.key"), made.signing_key.serialize_pem()).expect("a key file");
}

/// Returns a bucket, or a prefix in it, as mc takes it.
pub fn mc_target(prefix: &str) -> String {
    format!("{ALIAS}/{prefix}/")
}

/// Finds MinIO's client: `$MC`, else on PATH, else in the cache directory.
pub(crate) fn find_mc() -> Option<PathBuf> {
    static MC: OnceLock<Option<PathBuf>> = OnceLock::new();
    MC.get_or_init(|| candidates("MC", "mc").into_iter().find(|path| is_minio_client(path))).clone()
}

/// Midnight Commander has the same name.
fn is_minio_client(mc: &Path) -> bool {
    let output = Command::new(mc).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("MinIO"))
}
