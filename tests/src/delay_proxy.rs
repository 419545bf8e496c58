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
        Self::start_with(target, latency_ms, None)
    }

    /// As [`DelayProxy::start`]; all connections together pass at most `megabits` per second in each direction.
    pub fn start_with(target: &str, latency_ms: u32, megabits: Option<u32>) -> Self {
        let delay = latency_ms.div_ceil(2).to_string();
        let rate = megabits.map(|megabits| megabits.to_string());
        let args: Vec<&OsStr> = [target, &delay].into_iter().chain(rate.as_deref()).map(OsStr::new).collect();
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
