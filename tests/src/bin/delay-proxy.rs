//! `delay-proxy TARGET MILLISECONDS`: a distant server, made of a near one.
//!
//! Listens on a free loopback port, says `ENDPOINT 127.0.0.1:PORT` on standard output, and forwards each connection to
//! TARGET (`ADDRESS:PORT`). Whatever goes either way arrives so many milliseconds later, and a new connection takes a
//! round trip more, as its handshake would. Bandwidth is not limited. Ends when standard input closes.

use std::collections::VecDeque;
use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: delay-proxy TARGET MILLISECONDS";

/// Most bytes read at once.
const CHUNK: usize = 64 << 10;

/// Most bytes on their way in one direction of a connection: more than a link of 1 Gbit/s holds in half a second.
const IN_FLIGHT: usize = 64 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("delay-proxy: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), String> {
    let (target, delay) = parse(env::args().skip(1))?;
    let failed = |error: io::Error| format!("cannot listen: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let endpoint = listener.local_addr().map_err(failed)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ENDPOINT {endpoint}").map_err(failed)?;
    drop(stdout);
    thread::spawn(move || accept(&listener, target, delay));
    let mut buffer = [0; 256];
    while matches!(io::stdin().read(&mut buffer), Ok(1..)) {}
    Ok(())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<(SocketAddr, Duration), &'static str> {
    let (Some(target), Some(delay), None) = (args.next(), args.next(), args.next()) else { return Err(USAGE) };
    let target = target.parse().map_err(|_| USAGE)?;
    Ok((target, Duration::from_millis(delay.parse().map_err(|_| USAGE)?)))
}

fn accept(listener: &TcpListener, target: SocketAddr, delay: Duration) {
    // A client that goes away is the client's business.
    for client in listener.incoming().flatten() {
        thread::spawn(move || drop(connect(client, target, delay)));
    }
}

/// Forwards one connection, both ways, until both ends have closed it.
fn connect(client: TcpStream, target: SocketAddr, delay: Duration) -> io::Result<()> {
    // The client believes to be connected already; what it sends would not have left before the handshake's end.
    let established = Instant::now() + 2 * delay;
    let server = TcpStream::connect(target)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || forward(server_too, client_too, delay, established));
    forward(client, server, delay, established);
    Ok(())
}

/// Forwards one direction.
fn forward(mut from: TcpStream, mut to: TcpStream, delay: Duration, established: Instant) {
    let line = Arc::new(Line::default());
    let arriving = Arc::clone(&line);
    let writer = thread::spawn(move || {
        while let Some(bytes) = arriving.receive() {
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        arriving.cut();
        // Where the other end is gone there is nothing left to close.
        drop(to.shutdown(Shutdown::Write));
    });
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).unwrap_or(0);
        let due = Instant::now().max(established) + delay;
        if !line.send(due, buffer[..length].to_vec()) || length == 0 {
            break;
        }
    }
    drop(writer.join());
    // When the writing end failed, the reading end must hear of it.
    drop(from.shutdown(Shutdown::Read));
}

/// What is on its way, and when it is due; no bytes at all are the end.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    cut: bool,
}

impl Line {
    /// Sends bytes on their way; false when nobody receives them any more.
    fn send(&self, due: Instant, bytes: Vec<u8>) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |state: &mut State| state.bytes >= IN_FLIGHT && !state.cut;
        let mut state = self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        state.bytes += bytes.len();
        state.chunks.push_back((due, bytes));
        self.changed.notify_all();
        !state.cut
    }

    /// Waits until the next bytes are due; None in the end.
    fn receive(&self) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = |state: &mut State| state.chunks.is_empty();
        let mut state = self.changed.wait_while(state, empty).unwrap_or_else(PoisonError::into_inner);
        let (due, bytes) = state.chunks.pop_front()?;
        drop(state);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes -= bytes.len();
        self.changed.notify_all();
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Nobody receives any more.
    fn cut(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).cut = true;
        self.changed.notify_all();
    }
}
