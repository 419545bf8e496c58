//! Hosts that cannot be reached, and servers that accept connections but do not respond.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use cache_tests::lying_server::{LyingServer, Response};
use cache_tests::{Credentials, Scratch, store_path};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;

use super::for_each_in_parallel;

/// An address that drops new connections, as a host behind a firewall does: its queue of connections is full.
struct Unreachable {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
    _runtime: Runtime,
}

impl Unreachable {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(0).unwrap()
        });
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let queued = std::iter::from_fn(connect).take(100).collect::<Vec<_>>();
        assert!(queued.len() < 100, "the queue is never full");
        Self { address, _listener: listener, _queued: queued, _runtime: runtime }
    }
}

#[test]
fn a_note_tells_after_three_seconds_which_host_does_not_respond() {
    let unreachable = Unreachable::new();
    let silent = LyingServer::start(|_| Response::silent());
    let path = store_path("absent", 1);
    // Four attempts of one second, or one attempt of four seconds.
    let connect = (unreachable.address.to_string(), "--connect-timeout 1 --attempts 4", 4);
    let respond = (silent.endpoint().to_owned(), "--idle-timeout 4 --attempts 1", 1);
    let mut cases = Vec::new();
    for (host, limits, attempts) in [connect, respond] {
        let bucket = format!("s3://bucket?endpoint=http://{host}");
        cases.extend(
            [
                format!("s3-pull {limits} --root out '{bucket}' {path}"),
                format!("s3-pull {limits} --root out http://{host}/cache {path}"),
                format!("echo x | s3-push {limits} '{bucket}' --key log/x"),
            ]
            .map(|command| (command, host.clone(), attempts)),
        );
    }
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    for_each_in_parallel(&cases, |(command, host, attempts)| {
        let stderr = scratch.sh(command).fails(2);
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "a note and an error: {stderr}");
        let (start, end) = (format!("no response from http://{host}"), format!(" of {attempts}), still trying; "));
        assert!(
            lines[0].contains(&start) && lines[0].contains(&end) && lines[0].contains("--connect-timeout"),
            "{stderr}"
        );
        assert!(lines[1].contains("timed out") && lines[1].contains(host), "{stderr}");
    });
}

#[test]
fn the_connect_timeout_ends_an_attempt_and_quiet_omits_the_note() {
    let unreachable = Unreachable::new();
    let host = unreachable.address.to_string();
    let path = store_path("absent", 1);
    let limits = "--quiet --connect-timeout 4s --attempts 1";
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let cases = [
        format!("s3-pull {limits} --root out 's3://bucket?endpoint=http://{host}' {path}"),
        format!("s3-pull {limits} --root out http://{host}/cache {path}"),
        format!("echo x | s3-push {limits} 's3://bucket?endpoint=http://{host}' --key log/x"),
    ];
    for_each_in_parallel(&cases, |command| {
        let stderr = scratch.sh(command).fails(2);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("timed out after 4 seconds"), "{stderr}");
    });
}
