//! Mutexes of threads that may panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex that a panicked thread may have poisoned: the panic is reported where the thread is joined.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
