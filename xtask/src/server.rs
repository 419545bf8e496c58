//! A MinIO of our own, which ends when we do, whatever becomes of us.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::json::text_field;
use crate::minio::Minio;
use crate::session::{self, output, random_hex};

/// How long MinIO may take until it answers.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Runs a server until it ends by itself or the pipe on standard input closes, then removes its directory: as
/// tests/src/server.rs does.
const KEEPER: &str = r#"
exec 3<&0
dir=$1; shift
"$@" </dev/null & server=$!
( read -r _ || true; kill -KILL "$server" ) <&3 2>/dev/null & watcher=$!
wait "$server" && status=0 || status=$?
kill -KILL "$watcher" 2>/dev/null || true
rm -rf -- "$dir"
exit "$status"
"#;

/// The server's name among those that mc knows.
const ALIAS: &str = "cache";

/// A running MinIO.
pub struct Server {
    keeper: Child,
    /// `127.0.0.1:PORT`.
    pub endpoint: String,
    pub user: String,
    pub password: String,
    dir: PathBuf,
    mc: PathBuf,
}

impl Server {
    /// Starts one with its data in `dir`, which is made here and removed in the end.
    pub fn start(minio: &Minio, dir: &Path) -> Result<Self, String> {
        // Another process may take the port between its choice and the server's start.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(minio, dir)? {
                return Ok(server);
            }
        }
        Err("MinIO did not start".to_owned())
    }

    fn try_start(minio: &Minio, dir: &Path) -> Result<Option<Self>, String> {
        let failed = |error: io::Error| format!("cannot start MinIO in {}: {error}", dir.display());
        fs::create_dir_all(dir.join("mc")).map_err(failed)?;
        let endpoint = format!("127.0.0.1:{}", free_port().map_err(failed)?);
        let (user, password) = (random_hex()?, random_hex()?);
        let log = File::create(dir.join("log")).map_err(failed)?;
        let mut command = session::command("bash");
        command.args(["-c", KEEPER, "keeper"]).arg(dir).arg(&minio.server).args(arguments(dir, &endpoint));
        command.env("MINIO_ROOT_USER", &user).env("MINIO_ROOT_PASSWORD", &password);
        command.env("MINIO_BROWSER", "off").env("MINIO_UPDATE", "off").env("MINIO_PROMETHEUS_AUTH_TYPE", "public");
        command.stdin(Stdio::piped()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        // An interrupt from the terminal is for us; the keeper sees the pipe close.
        let keeper = command.process_group(0).spawn().map_err(failed)?;
        let mut server = Self { keeper, endpoint, user, password, dir: dir.to_owned(), mc: minio.client.clone() };
        Ok(server.answers().then_some(server))
    }

    fn answers(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < START_LIMIT && matches!(self.keeper.try_wait(), Ok(None)) {
            if is_ready(&self.endpoint).unwrap_or(false) {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// A command of MinIO's client, as the administrator of the server at `endpoint`: this one, or a proxy before it.
    pub fn mc(&self, endpoint: &str, args: &[&str]) -> Command {
        let mut command = session::command(&self.mc);
        command.arg("--config-dir").arg(self.dir.join("mc")).arg("--quiet").args(args);
        command.env(format!("MC_HOST_{ALIAS}"), format!("http://{}:{}@{endpoint}", self.user, self.password));
        command
    }

    /// Runs a command of MinIO's client.
    pub fn run_mc(&self, args: &[&str]) -> Result<String, String> {
        output(&mut self.mc(&self.endpoint, args))
    }

    pub fn make_bucket(&self, bucket: &str) -> Result<(), String> {
        self.run_mc(&["mb", &target(bucket)]).map(drop)
    }

    /// The keys of a bucket's objects.
    pub fn objects(&self, bucket: &str) -> Result<Vec<String>, String> {
        let listing = self.run_mc(&["ls", "--recursive", "--json", &target(bucket)])?;
        Ok(listing.lines().filter_map(|line| text_field(line, "key")).collect())
    }

    /// The keys of multipart uploads in a bucket that nobody completed or gave up.
    pub fn incomplete(&self, bucket: &str) -> Result<Vec<String>, String> {
        let listing = self.run_mc(&["ls", "--recursive", "--incomplete", "--json", &target(bucket)])?;
        Ok(listing.lines().filter_map(|line| text_field(line, "key")).collect())
    }

    /// Directories of multipart uploads under way, of all buckets, as they lie on MinIO's disk: what a listing tells
    /// depends on the release.
    pub fn uploads(&self) -> Vec<PathBuf> {
        let children = |dir: &Path| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        let objects = children(&self.dir.join("data/.minio.sys/multipart"));
        objects.iter().flat_map(|object| children(object)).collect()
    }

    /// How many S3 requests the server has answered so far, whoever made them.
    pub fn requests(&self) -> Result<u64, String> {
        let failed = |error: io::Error| format!("cannot ask MinIO for its metrics: {error}");
        let metrics = get(&self.endpoint, "/minio/metrics/v3/api/requests").map_err(failed)?;
        let counts = metrics.lines().filter(|line| line.starts_with("minio_api_requests_total{"));
        let of_s3 = counts.filter(|line| line.contains("type=\"s3\""));
        // Written as floating point when they are large.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count
        let numbers = of_s3.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map(|count| count as u64);
        Ok(numbers.sum())
    }

    /// Gives a command of ours the administrator's credentials.
    pub fn authorise(&self, command: &mut Command) {
        command.env("AWS_ACCESS_KEY_ID", &self.user).env("AWS_SECRET_ACCESS_KEY", &self.password);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// A bucket of the server at `endpoint`, or a place in it, as our tools take it.
pub fn url(endpoint: &str, place: &str) -> String {
    format!("s3://{place}?endpoint={endpoint}&scheme=http&region=us-east-1")
}

/// A bucket, or a place in it, as mc takes it.
pub fn target(place: &str) -> String {
    format!("{ALIAS}/{place}/")
}

fn arguments(dir: &Path, endpoint: &str) -> [OsString; 6] {
    let (data, certs) = (dir.join("data"), dir.join("certs"));
    ["server".into(), data.into(), "--address".into(), endpoint.into(), "--certs-dir".into(), certs.into()]
}

/// A loopback port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn is_ready(endpoint: &str) -> io::Result<bool> {
    Ok(get(endpoint, "/minio/health/ready")?.starts_with("HTTP/1.0 200"))
}

/// An answer as it comes, head and body. HTTP/1.0 has no chunks.
fn get(endpoint: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(endpoint)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {endpoint}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
