//! The flag of a collector, `gc/sweeping`: while it exists, objects are deleted, and pushers wait. Only one collector has
//! it at a time, also on a service that ignores the condition of a write.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nar_pack::error::{Error, Result};

use super::records::{FLAG_KEY, GcObjects};
use crate::remote::TextObject;
use crate::remote::s3::{Bucket, PutOutcome};

/// Age at which the flag of another collector is taken over.
pub const FLAG_LIFETIME: Duration = Duration::from_mins(15);
/// Age at which a collector writes its own flag again.
const RENEWAL_AGE: Duration = Duration::from_mins(5);
/// Least pause before the flag is read back where the service ignores the condition of a write.
const MIN_PAUSE: Duration = Duration::from_secs(2);
/// Round trips that the pause lasts.
const PAUSE_ROUND_TRIPS: u32 = 10;
/// Maximum size of the flag in bytes.
const MAX_SIZE: usize = 4096;

/// The flag, owned by this process.
pub struct SweepFlag<'a> {
    bucket: &'a Bucket,
    /// The contents: random, so that they identify the owner.
    text: String,
    written: Instant,
    takeover_pause: Duration,
}

impl<'a> SweepFlag<'a> {
    /// Does `work` while the flag is set. The flag is removed after an error too, so that pushers need not wait.
    ///
    /// # Errors
    /// See [`SweepFlag::set`]; the error of `work`; fails if the flag cannot be removed.
    pub async fn hold<T>(
        bucket: &'a Bucket,
        objects: &GcObjects,
        now: SystemTime,
        takeover_pause: Duration,
        work: impl AsyncFnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut flag = Self::new(bucket, now, takeover_pause);
        let result: Result<T> = async {
            flag.set(objects, now).await?;
            let value = work(&mut flag).await?;
            flag.require_owned().await?;
            Ok(value)
        }
        .await;
        // After an error, the first one is reported.
        let removed = flag.remove_if_owned().await;
        let value = result?;
        removed?;
        Ok(value)
    }

    fn new(bucket: &'a Bucket, now: SystemTime, takeover_pause: Duration) -> Self {
        let owner = format!("{:032x}", fastrand::u128(..));
        let text = format!("Owner: {owner}\nTime: {}\n", humantime::format_rfc3339_seconds(now));
        Self { bucket, text, written: Instant::now(), takeover_pause }
    }

    /// Removes the flag of a collector that has stopped, after `takeover_pause`. Otherwise pins and pushes would wait for it.
    ///
    /// # Errors
    /// See [`SweepFlag::hold`].
    pub async fn remove_abandoned(
        bucket: &'a Bucket,
        objects: &GcObjects,
        now: SystemTime,
        takeover_pause: Duration,
    ) -> Result {
        if is_abandoned(objects, now) {
            Self::hold(bucket, objects, now, takeover_pause, async |_| Ok(())).await
        } else {
            Ok(())
        }
    }

    /// Sets the flag. `now` is the time of the service. If the flag of another collector is taken over, waits for
    /// `takeover_pause`: a deletion that the other one may have begun must have ended by then.
    ///
    /// # Errors
    /// Fails if another collector has it, or if it cannot be written.
    async fn set(&mut self, objects: &GcObjects, now: SystemTime) -> Result {
        let pause = match objects.flag_time {
            Some(_) if !is_abandoned(objects, now) => return Err(self.in_use()),
            _ if self.bucket.is_dry_run() => return Ok(()),
            Some(_) => self.take_over(now).await?,
            None => self.create().await?,
        };
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        self.require_owned().await
    }

    fn in_use(&self) -> Error {
        let url = self.bucket.display_url(FLAG_KEY);
        let minutes = FLAG_LIFETIME.as_secs() / 60;
        Error::failed(format!("{url}: another collector is deleting")).with_hint(format!(
            "run the command again when it has ended; its flag is taken over after {minutes} minutes"
        ))
    }

    fn body(&self) -> Bytes {
        Bytes::from(self.text.clone())
    }

    /// Writes the flag where there is none. Returns how long to wait before it is read back.
    async fn create(&mut self) -> Result<Option<Duration>> {
        // It is this process's own if the response to the first attempt of the request was lost.
        if self.bucket.put_new(FLAG_KEY, "text/plain", self.body()).await? == PutOutcome::Existed
            && self.find_own().await?.is_none()
        {
            return Err(self.in_use());
        }
        // A service that ignores the condition writes it once more.
        let started = Instant::now();
        let second = self.bucket.put_new(FLAG_KEY, "text/plain", self.body()).await?;
        self.written = Instant::now();
        let pause = (started.elapsed() * PAUSE_ROUND_TRIPS).max(MIN_PAUSE);
        Ok((second == PutOutcome::Created).then_some(pause))
    }

    /// Replaces a flag whose owner has stopped. Returns how long to wait before it is read back.
    async fn take_over(&mut self, now: SystemTime) -> Result<Option<Duration>> {
        let Some(found) = self.bucket.get_text(FLAG_KEY, MAX_SIZE).await? else { return self.create().await };
        // The listing that found it may be old, and what was read now may be the flag of a collector that took it over since.
        let objects = GcObjects::list(self.bucket).await?;
        if objects.flag_time.is_none() {
            return self.create().await;
        }
        if !is_abandoned(&objects, now) {
            return Err(self.in_use());
        }
        let etag = found.etag.as_deref();
        let outcome = self.bucket.put_if_unchanged(FLAG_KEY, "text/plain", self.body(), etag).await?;
        if outcome == PutOutcome::Existed && self.find_own().await?.is_none() {
            return Err(self.in_use());
        }
        self.written = Instant::now();
        Ok(Some(self.takeover_pause))
    }

    /// Reads the flag; returns it if it is this process's own.
    async fn find_own(&self) -> Result<Option<TextObject>> {
        let found = self.bucket.get_text(FLAG_KEY, MAX_SIZE).await?;
        Ok(found.filter(|found| found.text == self.text))
    }

    fn taken_over(&self) -> Error {
        let url = self.bucket.display_url(FLAG_KEY);
        Error::failed(format!("{url}: another collector has taken over; nothing more is deleted"))
    }

    /// Checks that this process still has the flag, and writes it again if it is old. Called before each deletion.
    ///
    /// # Errors
    /// Fails if another collector has taken it over, or if it cannot be read.
    pub async fn require_owned(&mut self) -> Result {
        if self.bucket.is_dry_run() {
            return Ok(());
        }
        let found = self.find_own().await?.ok_or_else(|| self.taken_over())?;
        if self.written.elapsed() >= RENEWAL_AGE {
            let etag = found.etag.as_deref();
            let outcome = self.bucket.put_if_unchanged(FLAG_KEY, "text/plain", self.body(), etag).await?;
            if outcome == PutOutcome::Existed && self.find_own().await?.is_none() {
                return Err(self.taken_over());
            }
            self.written = Instant::now();
        }
        Ok(())
    }

    /// Removes the flag, if this process still has it.
    ///
    /// # Errors
    /// Fails if it cannot be read or removed.
    async fn remove_if_owned(self) -> Result {
        if self.bucket.is_dry_run() || self.find_own().await?.is_none() {
            return Ok(());
        }
        self.bucket.delete(&[FLAG_KEY.to_owned()]).await
    }
}

/// Returns whether there is the flag of a collector that has stopped.
fn is_abandoned(objects: &GcObjects, now: SystemTime) -> bool {
    objects.flag_time.is_some_and(|time| now.duration_since(time).unwrap_or_default() >= FLAG_LIFETIME)
}
