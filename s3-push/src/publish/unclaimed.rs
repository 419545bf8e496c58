//! NARs that the path they arrived with did not need, because the cache has it. They are kept in memory until it
//! runs out, because another path may have the same contents, under a compression that the cache does not have.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo_gen::verify_nar::NarDigests;
use tokio::sync::Mutex as AsyncMutex;

use crate::publish::body::Body;

/// A verified NAR that no path has claimed. Clones share the body.
#[derive(Clone)]
pub struct UnclaimedNar {
    /// Its key.
    pub key: String,
    /// Its verified digests.
    pub digests: NarDigests,
    /// Its body until a task uploads it. Locked during the upload, so that other tasks wait for the object.
    pub body: Arc<AsyncMutex<Option<Body>>>,
}

impl UnclaimedNar {
    /// Creates an unclaimed NAR; `body` is `None` if no path can need it.
    pub fn new(key: String, digests: NarDigests, body: Option<Body>) -> Self {
        Self { key, digests, body: Arc::new(AsyncMutex::new(body)) }
    }
}

/// The unclaimed NARs of a push.
#[derive(Default)]
pub struct UnclaimedNars {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Set when memory ran out; no NAR is kept afterwards.
    is_closed: bool,
    nars: Vec<UnclaimedNar>,
}

impl UnclaimedNars {
    /// Returns whether memory ran out, so that no NAR is kept.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Keeps a NAR, or returns it if memory ran out.
    pub fn keep(&self, nar: UnclaimedNar) -> Option<UnclaimedNar> {
        let mut state = self.lock();
        if state.is_closed {
            return Some(nar);
        }
        state.nars.push(nar);
        None
    }

    /// Returns all NARs, and keeps none from now on.
    pub fn close(&self) -> Vec<UnclaimedNar> {
        let mut state = self.lock();
        state.is_closed = true;
        std::mem::take(&mut state.nars)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
