//! Servers that end with the test, whatever becomes of the test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs a server until it ends by itself or the pipe on standard input closes, then removes its directory.
///
/// The kernel closes the pipe when the test process ends in whatever way, so nothing is left behind by a panic, an
/// interrupt or a kill, nor by a server in a `static`, which is never dropped. `read` is a builtin of bash: the
/// watcher is one process, which can be killed.
const KEEPER: &str = r#"
dir=$1; shift
"$@" </dev/null & server=$!
( read -r _ || true; kill -KILL "$server" ) <&3 2>/dev/null & watcher=$!
wait "$server" && status=0 || status=$?
kill -KILL "$watcher" 2>/dev/null || true
rm -rf -- "$dir"
exit "$status"
"#;

/// A server in a process of its own.
#[derive(Debug)]
pub struct Server {
    keeper: Child,
}

impl Server {
    /// Starts `program ARGS…` with only `env` added to the environment; `dir` is its data, removed when it ends; what
    /// it says goes to `log`.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        args: &[S],
        env: &[(&str, &str)],
        dir: &Path,
        log: &Path,
    ) -> io::Result<Self> {
        let log = File::create(log)?;
        // Descriptor 3, since bash gives background jobs /dev/null as standard input.
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec 3<&0\n{KEEPER}"), "keeper"]).arg(dir).arg(program).args(args);
        command.envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // An interrupt from the terminal is for the test; the keeper sees the pipe close and tidies up.
        command.process_group(0);
        Ok(Self { keeper: command.spawn()? })
    }

    /// Whether it ended by itself.
    pub fn ended(&mut self) -> bool {
        !matches!(self.keeper.try_wait(), Ok(None))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
    listener.local_addr().expect("its number").port()
}

/// Sends one anonymous HTTP request to `endpoint` (`127.0.0.1:PORT`) and returns the status of the answer.
pub fn http_status(endpoint: &str, method: &str, path: &str, body: &[u8]) -> io::Result<u16> {
    let mut stream = TcpStream::connect(endpoint)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {endpoint}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body)?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let status = head.get(9..).and_then(|digits| str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}
