//! The signals that end a push or a pull: SIGINT, which Ctrl-C sends, and SIGTERM. A run that was interrupted is an
//! operation that failed (exit status 2), and says how to continue.

use std::future;

use nar_pack::error::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the user can do after an interruption.
pub const HINT: &str = "run the same command again to continue";

/// Receives the signals. One that was ignored when the process was started stays ignored: a shell starts commands in the
/// background of a script with SIGINT ignored.
pub struct Interrupts {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Interrupts {
    /// Receives the signals from now on, instead of being ended by them. To be called on a runtime.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn listen() -> Result<Self> {
        let failed = |error| Error::failed(format!("cannot listen for signals: {error}"));
        let listen = |kind| (!is_ignored(kind)).then(|| signal(kind)).transpose().map_err(failed);
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Returns what the next signal does, for the message.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            () = receive(self.interrupt.as_mut()) => "interrupted",
            () = receive(self.terminate.as_mut()) => "terminated",
        }
    }
}

async fn receive(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => future::pending().await,
    }
}

/// Returns whether the process ignores a signal, according to `/proc` (proc_pid_status(5), `SigIgn`).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
