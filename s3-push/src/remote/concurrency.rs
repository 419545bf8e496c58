//! The limit on the requests in flight to one remote cache. It follows AIMD, as TCP's congestion window does: it halves
//! once per burst of throttling responses and grows by one after each round of successful ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A concurrency limit that adapts to throttling.
#[derive(Debug)]
pub struct AdaptiveLimit {
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    max: usize,
    limit: usize,
    /// Permits to remove from the semaphore when their holders return them.
    excess: usize,
    /// Requests that were already in flight when the limit was halved, whose responses carry no new information.
    stale: usize,
    /// Successful responses since the limit last changed.
    successes: usize,
}

/// Permission for one request to be in flight; returned on drop.
#[derive(Debug)]
pub struct Permit {
    limit: Arc<AdaptiveLimit>,
    permit: Option<OwnedSemaphorePermit>,
}

impl AdaptiveLimit {
    /// Creates a limit of `max` requests in flight, at least one.
    #[must_use]
    pub fn new(max: u16) -> Arc<Self> {
        let max = usize::from(max).max(1);
        let state = State { max, limit: max, excess: 0, stale: 0, successes: 0 };
        Arc::new(Self { permits: Arc::new(Semaphore::new(max)), state: Mutex::new(state) })
    }

    /// Waits for a permit. Waiting requests are served in order.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        // Acquiring fails only for a closed semaphore, and this one is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        Permit { limit: Arc::clone(self), permit }
    }

    /// Records a response by which the server does not throttle.
    pub fn record_success(&self) {
        let mut state = self.state();
        if state.stale > 0 {
            state.stale -= 1;
        } else if state.limit < state.max {
            state.successes += 1;
            if state.successes >= state.limit {
                (state.limit, state.successes) = (state.limit + 1, 0);
                match state.excess.checked_sub(1) {
                    Some(excess) => state.excess = excess,
                    None => self.permits.add_permits(1),
                }
            }
        }
    }

    /// Records a request that ended without a response.
    pub fn record_lost(&self) {
        let mut state = self.state();
        state.stale = state.stale.saturating_sub(1);
    }

    /// Records a response by which the server throttles.
    pub fn record_throttled(&self) {
        let mut state = self.state();
        if state.stale > 0 {
            state.stale -= 1;
            return;
        }
        let reduction = state.limit - state.limit.div_ceil(2);
        let in_flight = (state.limit + state.excess).saturating_sub(self.permits.available_permits());
        (state.stale, state.successes) = (in_flight.saturating_sub(1), 0);
        state.limit -= reduction;
        state.excess += reduction - self.permits.forget_permits(reduction);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        if let (Some(excess), Some(permit)) = (state.excess.checked_sub(1), self.permit.take()) {
            state.excess = excess;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(limit: &AdaptiveLimit) -> usize {
        limit.state().limit
    }

    fn available(limit: &AdaptiveLimit) -> usize {
        limit.permits.available_permits()
    }

    #[tokio::test]
    async fn a_burst_of_throttling_responses_halves_the_limit_once() {
        let limit = AdaptiveLimit::new(16);
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(limit.acquire().await);
        }
        for _ in 0..16 {
            limit.record_throttled();
        }
        assert_eq!(current(&limit), 8);
        drop(held);
        assert_eq!(available(&limit), 8);
        limit.record_throttled();
        assert_eq!((current(&limit), available(&limit)), (4, 4));
    }

    #[test]
    fn one_request_is_always_allowed() {
        let limit = AdaptiveLimit::new(4);
        for _ in 0..100 {
            limit.record_throttled();
        }
        assert_eq!((current(&limit), available(&limit)), (1, 1));
    }

    #[test]
    fn successes_restore_the_whole_limit() {
        let limit = AdaptiveLimit::new(8);
        for _ in 0..20 {
            limit.record_throttled();
        }
        let responses = (1..).take_while(|_| {
            limit.record_success();
            current(&limit) < 8
        });
        assert!(responses.count() < 40);
        for _ in 0..100 {
            limit.record_success();
        }
        assert_eq!((current(&limit), available(&limit)), (8, 8));
    }

    #[tokio::test]
    async fn held_permits_in_excess_are_removed_when_returned() {
        let limit = AdaptiveLimit::new(8);
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(limit.acquire().await);
        }
        limit.record_throttled();
        assert_eq!((current(&limit), available(&limit)), (4, 0));
        held.truncate(4);
        assert_eq!(available(&limit), 0);
        held.clear();
        assert_eq!(available(&limit), 4);
    }
}
