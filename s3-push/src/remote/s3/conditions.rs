//! Whether a service applies the conditions of writes. Some ignore `If-None-Match` and `If-Match`, and answer as if the
//! condition were met.

use std::sync::atomic::Ordering;

use nar_pack::error::Result;

use super::{Bucket, PutOutcome};

impl Bucket {
    /// Returns whether the service applies the conditions of writes.
    ///
    /// The first call finds out without harm: it writes the object `key`, a text of at most `max_size` bytes, again with
    /// the bytes that it has, on condition that no object has this key. Without that object it returns true.
    ///
    /// # Errors
    /// Fails if the object cannot be read or written.
    pub async fn applies_conditions(&self, key: &str, content_type: &str, max_size: usize) -> Result<bool> {
        let applies =
            self.applies_conditions.get_or_try_init(|| self.try_condition(key, content_type, max_size)).await?;
        Ok(*applies && self.supports_conditional_writes.load(Ordering::Relaxed))
    }

    /// Returns whether it turned out that the service ignores conditions or does not support them.
    #[must_use]
    pub fn lacks_conditions(&self) -> bool {
        self.applies_conditions.get() == Some(&false) || !self.supports_conditional_writes.load(Ordering::Relaxed)
    }

    async fn try_condition(&self, key: &str, content_type: &str, max_size: usize) -> Result<bool> {
        if self.dry_run {
            return Ok(true);
        }
        let Some(object) = self.get_text(key, max_size).await? else { return Ok(true) };
        let outcome = self.put_new(key, content_type, object.text.into()).await?;
        Ok(outcome == PutOutcome::Existed)
    }
}
