//! A TCP listener on a free loopback port with a thread for each connection.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

/// A listener on a free loopback port. It stops when dropped.
#[derive(Debug)]
pub(crate) struct LoopbackListener {
    endpoint: String,
    stopped: Arc<AtomicBool>,
}

impl LoopbackListener {
    /// Calls `serve` with each connection, in a thread of its own. Its errors are ignored: clients may disconnect.
    pub(crate) fn start(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let endpoint = listener.local_addr().expect("the address of the listener").to_string();
        let stopped = Arc::new(AtomicBool::new(false));
        let (serve, is_stopped) = (Arc::new(serve), Arc::clone(&stopped));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                thread::spawn(move || drop(serve(client)));
            }
        });
        Self { endpoint, stopped }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for LoopbackListener {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener up, so that it sees the flag.
        drop(TcpStream::connect(&self.endpoint));
    }
}
