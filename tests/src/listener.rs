//! A server of a test: a loopback port, and a thread for each connection to it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

/// A listener on a loopback port of its own. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    endpoint: String,
    ended: Arc<AtomicBool>,
}

impl Listener {
    /// Gives each connection to `serve`. What that says of a client that goes away is the client's business.
    pub(crate) fn start(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let endpoint = listener.local_addr().expect("its number").to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let (serve, has_ended) = (Arc::new(serve), Arc::clone(&ended));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if has_ended.load(Ordering::Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                thread::spawn(move || drop(serve(client)));
            }
        });
        Self { endpoint, ended }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // The listener wakes up, and sees it.
        drop(TcpStream::connect(&self.endpoint));
    }
}
