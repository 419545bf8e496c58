//! The limit on the memory that bodies in flight occupy together.

use std::sync::Arc;

use nar_pack::error::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit in which memory is counted, in bytes, so that large budgets fit into the permits of a semaphore.
const UNIT: u64 = 4096;

/// A limit on the bytes of all bodies in flight. Clones share the limit.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    semaphore: Arc<Semaphore>,
    units: u64,
}

/// Permission to hold some bytes in memory; returned to the budget when dropped.
#[derive(Debug)]
pub struct BytePermit {
    _permit: OwnedSemaphorePermit,
}

impl ByteBudget {
    /// Creates a budget of `bytes` bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let units = (bytes / UNIT).clamp(1, u64::from(u32::MAX >> 3));
        Self { semaphore: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1))), units }
    }

    /// Returns the number of bytes for which no permit was given.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.semaphore.available_permits() as u64 * UNIT
    }

    /// Returns a permit for `size` bytes if it is available now.
    #[must_use]
    pub fn try_acquire(&self, size: usize) -> Option<BytePermit> {
        let permit = Arc::clone(&self.semaphore).try_acquire_many_owned(self.units_of(size)).ok()?;
        Some(BytePermit { _permit: permit })
    }

    /// Waits for a permit for `size` bytes. A size above the whole budget takes all of it.
    ///
    /// # Errors
    /// Fails when the budget is closed.
    pub async fn acquire(&self, size: usize) -> Result<BytePermit> {
        let permit = Arc::clone(&self.semaphore).acquire_many_owned(self.units_of(size)).await;
        permit.map(|permit| BytePermit { _permit: permit }).map_err(|_| Error::canceled())
    }

    fn units_of(&self, size: usize) -> u32 {
        u32::try_from((size as u64).div_ceil(UNIT).clamp(1, self.units)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_size_above_the_budget_takes_all_of_it() {
        let budget = ByteBudget::new(2 * UNIT);
        let permit = budget.acquire(usize::MAX).await.unwrap();
        assert!(budget.try_acquire(1).is_none());
        drop(permit);
        assert!(budget.try_acquire(1).is_some());
    }
}
