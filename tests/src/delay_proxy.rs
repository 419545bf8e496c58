//! A proxy that adds latency in front of a server.

use std::ffi::OsStr;
use std::process::Child;

use crate::bin_dir;
use crate::supervised_server::spawn_endpoint_server;

/// A running `delay-proxy`. It ends when this is dropped or when this process ends.
#[derive(Debug)]
pub struct DelayProxy {
    child: Child,
    endpoint: String,
}

impl DelayProxy {
    /// Starts a proxy for the server at `target` that adds `latency_ms` to each round trip, half of it either way.
    pub fn start(target: &str, latency_ms: u32) -> Self {
        let delay = latency_ms.div_ceil(2).to_string();
        let args = [OsStr::new(target), OsStr::new(&delay)];
        let (child, endpoint) = spawn_endpoint_server(&bin_dir().join("delay-proxy"), &args, &[]);
        Self { child, endpoint }
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
