//! The limit on the requests in flight to one remote cache. It follows AIMD, as TCP's congestion window does: it halves
//! once per burst of throttling responses and grows by one after each round of successful ones.

use std::sync::{Arc, Mutex, MutexGuard};

use nar_pack::sync::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::remote::progress::report_wait;

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
    /// Attempts whose response has not begun. A body that streams is not one of them: its outcome is known.
    awaiting: usize,
    /// Attempts that already awaited a response when the limit was halved. Their outcomes carry no new information.
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

/// An attempt at a request that awaits its response. If it is dropped, it ended without one.
#[derive(Debug)]
pub struct AwaitedResponse {
    limit: Arc<AdaptiveLimit>,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The server responds and does not throttle.
    Success,
    /// The server throttles.
    Throttled,
    /// There is no response.
    Lost,
}

impl AwaitedResponse {
    /// Records a response by which the server does not throttle.
    pub fn succeeded(mut self) {
        self.outcome = Outcome::Success;
    }

    /// Records a response by which the server throttles.
    pub fn throttled(mut self) {
        report_wait("throttled");
        self.outcome = Outcome::Throttled;
    }
}

impl Drop for AwaitedResponse {
    fn drop(&mut self) {
        self.limit.record(self.outcome);
    }
}

impl AdaptiveLimit {
    /// Creates a limit of `max` requests in flight, at least one.
    #[must_use]
    pub fn new(max: u16) -> Arc<Self> {
        let max = usize::from(max).max(1);
        let state = State { max, limit: max, excess: 0, awaiting: 0, stale: 0, successes: 0 };
        Arc::new(Self { permits: Arc::new(Semaphore::new(max)), state: Mutex::new(state) })
    }

    /// Waits for a permit. Waiting requests are served in order.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        // Acquiring fails only for a closed semaphore, and this one is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        Permit { limit: Arc::clone(self), permit }
    }

    /// Starts an attempt at a request.
    pub fn start_attempt(self: &Arc<Self>) -> AwaitedResponse {
        self.state().awaiting += 1;
        AwaitedResponse { limit: Arc::clone(self), outcome: Outcome::Lost }
    }

    fn record(&self, outcome: Outcome) {
        let mut state = self.state();
        state.awaiting = state.awaiting.saturating_sub(1);
        if state.stale > 0 {
            state.stale -= 1;
            return;
        }
        match outcome {
            Outcome::Success => self.grow(&mut state),
            Outcome::Throttled => self.halve(&mut state),
            Outcome::Lost => {}
        }
    }

    fn grow(&self, state: &mut State) {
        if state.limit >= state.max {
            return;
        }
        state.successes += 1;
        if state.successes >= state.limit {
            (state.limit, state.successes) = (state.limit + 1, 0);
            match state.excess.checked_sub(1) {
                Some(excess) => state.excess = excess,
                None => self.permits.add_permits(1),
            }
        }
    }

    fn halve(&self, state: &mut State) {
        let reduction = state.limit - state.limit.div_ceil(2);
        (state.stale, state.successes) = (state.awaiting, 0);
        state.limit -= reduction;
        state.excess += reduction - self.permits.forget_permits(reduction);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
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
            held.push((limit.acquire().await, limit.start_attempt()));
        }
        let permits: Vec<Permit> = held.into_iter().map(|(permit, attempt)| (attempt.throttled(), permit).1).collect();
        assert_eq!(current(&limit), 8);
        drop(permits);
        assert_eq!(available(&limit), 8);
        limit.start_attempt().throttled();
        assert_eq!((current(&limit), available(&limit)), (4, 4));
    }

    /// Twelve bodies stream while four attempts are throttled, twice. Each burst halves the limit.
    #[tokio::test]
    async fn bodies_that_stream_do_not_delay_the_next_reduction() {
        let limit = AdaptiveLimit::new(16);
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(limit.acquire().await);
        }
        for _ in 0..12 {
            limit.start_attempt().succeeded();
        }
        for expected in [8, 4] {
            let burst: Vec<AwaitedResponse> = (0..4).map(|_| limit.start_attempt()).collect();
            burst.into_iter().for_each(AwaitedResponse::throttled);
            assert_eq!(current(&limit), expected);
        }
    }

    #[test]
    fn an_attempt_that_is_dropped_is_no_longer_awaited() {
        let limit = AdaptiveLimit::new(8);
        drop(limit.start_attempt());
        limit.start_attempt().throttled();
        let state = limit.state();
        assert_eq!((state.limit, state.awaiting, state.stale), (4, 0, 0));
    }

    #[test]
    fn one_request_is_always_allowed() {
        let limit = AdaptiveLimit::new(4);
        for _ in 0..100 {
            limit.start_attempt().throttled();
        }
        assert_eq!((current(&limit), available(&limit)), (1, 1));
    }

    #[test]
    fn successes_restore_the_whole_limit() {
        let limit = AdaptiveLimit::new(8);
        for _ in 0..20 {
            limit.start_attempt().throttled();
        }
        let responses = (1..).take_while(|_| {
            limit.start_attempt().succeeded();
            current(&limit) < 8
        });
        assert!(responses.count() < 40);
        for _ in 0..100 {
            limit.start_attempt().succeeded();
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
        limit.start_attempt().throttled();
        assert_eq!((current(&limit), available(&limit)), (4, 0));
        held.truncate(4);
        assert_eq!(available(&limit), 0);
        held.clear();
        assert_eq!(available(&limit), 4);
    }
}
