//! The signals that end a push or a pull: SIGINT, which Ctrl-C sends, and SIGTERM. A run that was interrupted is an
//! operation that failed (exit status 2), and says how to continue.

use nar_pack::error::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the user can do after an interruption.
pub const HINT: &str = "run the same command again to continue";

/// Receives the signals.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Receives the signals from now on, instead of being ended by them. To be called on a runtime.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::failed(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Returns what the next signal does, for the message.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        }
    }
}
