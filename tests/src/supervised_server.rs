//! Server processes that end with the process that started them, however that one ends.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Runs a server until it exits or the pipe on standard input closes, then removes its directory.
///
/// The kernel closes the pipe when the process that started the server ends, so nothing is left behind by a panic, an
/// interrupt or a kill, nor by a server in a `static`, which is never dropped. `read` is a builtin of bash: the
/// watcher is a single process, which can be killed.
const SUPERVISOR: &str = r#"
exec 3<&0
dir=$1; shift
"$@" </dev/null & server=$!
( read -r _ || true; kill -KILL "$server" ) <&3 2>/dev/null & watcher=$!
wait "$server" && status=0 || status=$?
kill -KILL "$watcher" 2>/dev/null || true
rm -rf -- "$dir"
exit "$status"
"#;

/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Another process may take a free port before the server binds it, so the start is repeated.
const MAX_START_ATTEMPTS: usize = 5;

/// A server in a process of its own; it ends when this is dropped or when this process ends.
#[derive(Debug)]
pub struct SupervisedServer {
    supervisor: Child,
    /// `127.0.0.1:PORT`.
    pub endpoint: String,
    /// The server's data, removed when it ends.
    pub dir: PathBuf,
}

impl SupervisedServer {
    /// Starts `program` on a free port with a new data directory and waits until `is_ready(endpoint)`.
    ///
    /// `args` returns the arguments for a data directory and an endpoint; `env` is added to the environment.
    pub fn start(
        program: &Path,
        args: impl Fn(&Path, &str) -> Vec<OsString>,
        env: &[(&str, &str)],
        is_ready: impl Fn(&str) -> bool,
    ) -> Self {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for _ in 0..MAX_START_ATTEMPTS {
            let prefix = format!("nix-s3-cache-{name}-");
            let dir = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a directory for the server").keep();
            let endpoint = free_endpoint();
            let args = args(&dir, &endpoint);
            let supervisor = spawn(program, &args, env, &dir).expect("bash starts the server");
            let mut server = Self { supervisor, endpoint, dir };
            let start = Instant::now();
            while start.elapsed() < START_TIMEOUT && !server.has_exited() {
                if is_ready(&server.endpoint) {
                    return server;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("{name} did not start on any of {MAX_START_ATTEMPTS} free ports");
    }

    fn has_exited(&mut self) -> bool {
        !matches!(self.supervisor.try_wait(), Ok(None))
    }
}

impl Drop for SupervisedServer {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        drop(self.supervisor.wait());
    }
}

fn spawn(program: &Path, args: &[OsString], env: &[(&str, &str)], dir: &Path) -> io::Result<Child> {
    let log = File::create(dir.join("log"))?;
    // Descriptor 3, since bash gives background jobs /dev/null as standard input.
    let mut command = Command::new("bash");
    command.args(["-c", SUPERVISOR, "supervisor"]).arg(dir).arg(program).args(args);
    command.envs(env.iter().copied());
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    // An interrupt from the terminal is for this process; the supervisor sees the pipe close and cleans up.
    command.process_group(0).spawn()
}

/// Starts one of our own servers, which prints `ENDPOINT ADDRESS:PORT` and ends when its standard input closes.
pub(crate) fn spawn_endpoint_server(program: &Path, args: &[&OsStr], env: &[(&str, &str)]) -> (Child, String) {
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
    // An interrupt from the terminal is for this process; the server sees its standard input close.
    let mut child = command
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; run `cargo build --workspace --bins`", program.display()));
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe from the server");
    BufReader::new(stdout).read_line(&mut line).expect("a line from the server");
    let endpoint = line.strip_prefix("ENDPOINT ").map(str::trim);
    let endpoint = endpoint.unwrap_or_else(|| panic!("{} did not start", program.display())).to_owned();
    (child, endpoint)
}

/// Returns `127.0.0.1:PORT` with a port that was free a moment ago.
pub fn free_endpoint() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// Returns a loopback port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
    listener.local_addr().expect("the address of the listener").port()
}

/// Sends an anonymous HTTP request to `endpoint` (`127.0.0.1:PORT`) and returns the status of the response.
pub fn http_status(endpoint: &str, method: &str, path: &str, body: &[u8]) -> io::Result<u16> {
    let mut stream = connect(endpoint)?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {endpoint}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body)?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let status = head.get(9..).and_then(|digits| str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP response"))
}

/// Sends an anonymous GET request and returns the whole response, head and body. HTTP/1.0 has no chunks.
pub(crate) fn http_get(endpoint: &str, path: &str) -> io::Result<String> {
    let mut stream = connect(endpoint)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {endpoint}\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

fn connect(endpoint: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(endpoint)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// Creates a directory in the data directory of a server.
pub(crate) fn make_dir(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
}
