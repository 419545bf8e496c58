//! `delay-proxy TARGET MILLISECONDS [MEGABITS]`: makes a local server look distant.
//!
//! Listens on a free loopback port, prints `ENDPOINT 127.0.0.1:PORT`, and forwards each connection to TARGET
//! (`ADDRESS:PORT`). Data arrives MILLISECONDS later in each direction, and a new connection takes an additional round
//! trip for its handshake. All connections together pass at most MEGABITS per second in each direction, by default as many
//! as they can. Nothing is lost. Exits when standard input closes.

use std::collections::VecDeque;
use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: delay-proxy TARGET MILLISECONDS [MEGABITS]";

/// Maximum number of bytes per read.
const CHUNK_SIZE: usize = 64 << 10;

/// Maximum number of bytes in flight in one direction of a connection: more than a link of 1 Gbit/s holds in half a
/// second.
const MAX_IN_FLIGHT: usize = 64 << 20;
/// The same on a link with a limited rate: a sender must notice that it is full.
const MAX_IN_FLIGHT_WITH_RATE: usize = 512 << 10;

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
    let (target, link) = parse(env::args().skip(1))?;
    let link = Arc::new(link);
    let failed = |error: io::Error| format!("cannot listen: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let endpoint = listener.local_addr().map_err(failed)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ENDPOINT {endpoint}").map_err(failed)?;
    drop(stdout);
    thread::spawn(move || accept(&listener, target, &link));
    let mut buffer = [0; 256];
    while matches!(io::stdin().read(&mut buffer), Ok(1..)) {}
    Ok(())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<(SocketAddr, Link), &'static str> {
    let (Some(target), Some(delay), rate, None) = (args.next(), args.next(), args.next(), args.next()) else {
        return Err(USAGE);
    };
    let target = target.parse().map_err(|_| USAGE)?;
    let delay = Duration::from_millis(delay.parse().map_err(|_| USAGE)?);
    let megabits: Option<f64> = rate.map(|rate| rate.parse::<u32>()).transpose().map_err(|_| USAGE)?.map(f64::from);
    let now = Instant::now();
    let bytes_per_second = megabits.filter(|megabits| *megabits > 0.0).map(|megabits| megabits * 1e6 / 8.0);
    Ok((target, Link { delay, bytes_per_second, free: [Mutex::new(now), Mutex::new(now)] }))
}

/// The link that all connections share.
struct Link {
    delay: Duration,
    bytes_per_second: Option<f64>,
    /// When each direction has sent what it was given.
    free: [Mutex<Instant>; 2],
}

impl Link {
    /// Sends bytes on a connection that exists from `established` on; returns when they arrive.
    fn send(&self, direction: usize, bytes: usize, established: Instant) -> Instant {
        let now = Instant::now();
        let Some(rate) = self.bytes_per_second else { return now.max(established) + self.delay };
        let mut free = self.free[direction].lock().unwrap_or_else(PoisonError::into_inner);
        #[allow(clippy::cast_precision_loss)]
        let duration = Duration::from_secs_f64(bytes as f64 / rate);
        // A connection that is not established yet does not occupy the link.
        *free = now.max(*free) + duration;
        (*free).max(established) + self.delay
    }

    /// Returns the maximum number of bytes in flight in one direction of a connection.
    fn max_in_flight(&self) -> usize {
        if self.bytes_per_second.is_some() { MAX_IN_FLIGHT_WITH_RATE } else { MAX_IN_FLIGHT }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, link: &Arc<Link>) {
    // Errors of a connection, such as a client that disconnects, are ignored.
    for client in listener.incoming().flatten() {
        let link = Arc::clone(link);
        thread::spawn(move || drop(connect(client, target, &link)));
    }
}

/// Forwards one connection, both ways, until both ends have closed it.
fn connect(client: TcpStream, target: SocketAddr, link: &Arc<Link>) -> io::Result<()> {
    // The client is connected already, but its data would not have left before the end of the handshake.
    let established = Instant::now() + 2 * link.delay;
    let server = TcpStream::connect(target)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    let link_too = Arc::clone(link);
    thread::spawn(move || forward(server_too, client_too, &link_too, 1, established));
    forward(client, server, link, 0, established);
    Ok(())
}

/// Forwards one direction.
fn forward(mut from: TcpStream, mut to: TcpStream, link: &Link, direction: usize, established: Instant) {
    let data = Arc::new(Line { max_in_flight: link.max_in_flight(), ..Line::default() });
    let arriving = Arc::clone(&data);
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
        let due = link.send(direction, length, established);
        if !data.send(due, buffer[..length].to_vec()) || length == 0 {
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
    max_in_flight: usize,
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
        let full = |state: &mut State| state.bytes >= self.max_in_flight && !state.cut;
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
