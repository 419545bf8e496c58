//! A limit on the bytes of NAR data in flight, for threads. (`s3_push` has one for async tasks.)

use std::sync::{Condvar, Mutex, PoisonError};

use nar_pack::sync::lock;

/// A counter of free bytes on which threads block.
pub struct BlockingByteBudget {
    /// None after [`BlockingByteBudget::close`].
    free: Mutex<Option<usize>>,
    changed: Condvar,
}

/// The budget was closed, because the data is no longer needed.
#[derive(Debug)]
pub struct Closed;

impl BlockingByteBudget {
    pub fn new(bytes: usize) -> Self {
        Self { free: Mutex::new(Some(bytes)), changed: Condvar::new() }
    }

    /// Waits until `bytes` are free and takes them. They must not be more than the whole budget.
    pub fn acquire(&self, bytes: usize) -> Result<(), Closed> {
        let free = lock(&self.free);
        let too_few = |free: &mut Option<usize>| free.is_some_and(|free| free < bytes);
        let mut free = self.changed.wait_while(free, too_few).unwrap_or_else(PoisonError::into_inner);
        *free = Some(free.ok_or(Closed)? - bytes);
        Ok(())
    }

    pub fn release(&self, bytes: usize) {
        let mut free = lock(&self.free);
        *free = free.map(|free| free + bytes);
        self.changed.notify_one();
    }

    /// Makes every present and future call of [`BlockingByteBudget::acquire`] return [`Closed`].
    pub fn close(&self) {
        *lock(&self.free) = None;
        self.changed.notify_all();
    }
}
