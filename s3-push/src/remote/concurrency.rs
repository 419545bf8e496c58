//! How many requests are in flight: at most as many as are allowed, fewer while the service says that it is asked too
//! much. Halved at the first such answer, then one more for each round of answers without another, as TCP does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nar_pack::error::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places among the requests in flight.
#[derive(Debug)]
pub struct AdaptiveLimit {
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    most: usize,
    limit: usize,
    /// Places that are to vanish when their holders leave them.
    owed: usize,
    /// Answers to requests that were under way when the limit was halved: they tell nothing new.
    stale: usize,
    /// Good answers since the limit was changed.
    good: usize,
}

/// A place among the requests in flight, left when this is dropped.
#[derive(Debug)]
pub struct Permit {
    limit: Arc<AdaptiveLimit>,
    place: Option<OwnedSemaphorePermit>,
}

impl AdaptiveLimit {
    /// At most `most` requests in flight.
    #[must_use]
    pub fn new(most: u16) -> Arc<Self> {
        let most = usize::from(most).max(1);
        let state = State { most, limit: most, owed: 0, stale: 0, good: 0 };
        Arc::new(Self { places: Arc::new(Semaphore::new(most)), state: Mutex::new(state) })
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// Fails when the work is given up.
    pub async fn slot(self: &Arc<Self>) -> Result<Permit> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| Error::failed("the work was given up"))?;
        Ok(Permit { limit: Arc::clone(self), place: Some(place) })
    }

    /// How many may be in flight now.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.state().limit
    }

    /// Notes an answer that is not a plea for patience.
    pub fn answered(&self) {
        let mut state = self.state();
        if state.stale > 0 {
            state.stale -= 1;
        } else if state.limit < state.most {
            state.good += 1;
            if state.good >= state.limit {
                (state.limit, state.good) = (state.limit + 1, 0);
                match state.owed.checked_sub(1) {
                    Some(owed) => state.owed = owed,
                    None => self.places.add_permits(1),
                }
            }
        }
    }

    /// Notes that a request ended without an answer.
    pub fn lost(&self) {
        let mut state = self.state();
        state.stale = state.stale.saturating_sub(1);
    }

    /// Notes that the service asks for patience.
    pub fn refused(&self) {
        let mut state = self.state();
        if state.stale > 0 {
            state.stale -= 1;
            return;
        }
        let fewer = state.limit - state.limit.div_ceil(2);
        let in_flight = (state.limit + state.owed).saturating_sub(self.places.available_permits());
        (state.stale, state.good) = (in_flight.saturating_sub(1), 0);
        state.limit -= fewer;
        state.owed += fewer - self.places.forget_permits(fewer);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        if let (Some(owed), Some(place)) = (state.owed.checked_sub(1), self.place.take()) {
            state.owed = owed;
            place.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places that can be had now.
    fn free(limit: &AdaptiveLimit) -> usize {
        limit.places.available_permits()
    }

    #[tokio::test]
    async fn a_burst_of_refusals_halves_once() {
        let limit = AdaptiveLimit::new(16);
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(limit.slot().await.unwrap());
        }
        for _ in 0..16 {
            limit.refused();
        }
        assert_eq!(limit.limit(), 8);
        drop(held);
        assert_eq!(free(&limit), 8);
        limit.refused();
        assert_eq!((limit.limit(), free(&limit)), (4, 4));
    }

    #[test]
    fn one_is_always_allowed() {
        let limit = AdaptiveLimit::new(4);
        for _ in 0..100 {
            limit.refused();
        }
        assert_eq!((limit.limit(), free(&limit)), (1, 1));
    }

    #[test]
    fn good_answers_bring_all_places_back() {
        let limit = AdaptiveLimit::new(8);
        for _ in 0..20 {
            limit.refused();
        }
        let answers = (1..).take_while(|_| {
            limit.answered();
            limit.limit() < 8
        });
        assert!(answers.count() < 40);
        for _ in 0..100 {
            limit.answered();
        }
        assert_eq!((limit.limit(), free(&limit)), (8, 8));
    }

    #[tokio::test]
    async fn places_that_are_held_vanish_when_they_are_left() {
        let limit = AdaptiveLimit::new(8);
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(limit.slot().await.unwrap());
        }
        limit.refused();
        assert_eq!((limit.limit(), free(&limit)), (4, 0));
        held.truncate(4);
        assert_eq!(free(&limit), 0);
        held.clear();
        assert_eq!(free(&limit), 4);
    }
}
