//! `delay-proxy TARGET MILLISECONDS`: makes a local server look distant.
//!
//! Listens on a free loopback port, prints `ENDPOINT 127.0.0.1:PORT`, and forwards each connection to TARGET
//! (`ADDRESS:PORT`). Data arrives MILLISECONDS later in each direction, and a new connection takes an additional round
//! trip for its handshake. Bandwidth is not limited. Exits when standard input closes.

use std::collections::VecDeque;
use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: delay-proxy TARGET MILLISECONDS";

/// Maximum number of bytes per read.
const CHUNK_SIZE: usize = 64 << 10;

/// Maximum number of bytes in flight in one direction of a connection: more than a link of 1 Gbit/s holds in half a
/// second.
const MAX_IN_FLIGHT: usize = 64 << 20;

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
    // Errors of a connection, such as a client that disconnects, are ignored.
    for client in listener.incoming().flatten() {
        thread::spawn(move || drop(connect(client, target, delay)));
    }
}

/// Forwards one connection, both ways, until both ends have closed it.
fn connect(client: TcpStream, target: SocketAddr, delay: Duration) -> io::Result<()> {
    // The client is connected already, but its data would not have left before the end of the handshake.
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
        // If the other end is closed, there is nothing to shut down.
        drop(to.shutdown(Shutdown::Write));
    });
    let mut buffer = vec![0; CHUNK_SIZE];
    loop {
        let length = from.read(&mut buffer).unwrap_or(0);
        let due = Instant::now().max(established) + delay;
        if !line.send(due, buffer[..length].to_vec()) || length == 0 {
            break;
        }
    }
    drop(writer.join());
    // After a write error, the sender must notice.
    drop(from.shutdown(Shutdown::Read));
}

/// Data in flight with the time of its arrival; an empty chunk is the end.
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
    /// Adds a chunk; returns false if the receiver has stopped.
    fn send(&self, due: Instant, bytes: Vec<u8>) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |state: &mut State| state.bytes >= MAX_IN_FLIGHT && !state.cut;
        let mut state = self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        state.bytes += bytes.len();
        state.chunks.push_back((due, bytes));
        self.changed.notify_all();
        !state.cut
    }

    /// Waits for the arrival of the next chunk; returns None at the end.
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

    /// Stops receiving.
    fn cut(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).cut = true;
        self.changed.notify_all();
    }
}
