//! How long an upload may take until its response begins. The SDK's timeout contains the time in which the body is sent, and
//! many parts may share a slow link. So the timeout of large bodies doubles when it is exceeded, up to a limit, and stays
//! so for all uploads of the process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_s3::config::interceptors::{BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use nar_pack::sync::lock;

use crate::remote::error_chain::chain;
use crate::remote::retry::RequestLimits;

/// Minimum size of a body whose timeout grows, in bytes.
const MIN_SIZE: usize = 1 << 20;
/// The longest timeout, as a multiple of the idle timeout: it doubles three times, by default from 30 seconds to four minutes.
const MAX_FACTOR: u32 = 8;

/// The timeout of the uploads of one bucket.
#[derive(Debug)]
pub(super) struct UploadTimeouts {
    limits: RequestLimits,
    current: Mutex<Duration>,
}

impl UploadTimeouts {
    pub(super) fn new(limits: RequestLimits) -> Arc<Self> {
        Arc::new(Self { limits, current: Mutex::new(limits.idle_timeout) })
    }

    /// Returns the interceptor of a request with a body of `size` bytes.
    pub(super) fn of_body(self: &Arc<Self>, size: usize) -> UploadTimeout {
        UploadTimeout((size >= MIN_SIZE).then(|| Arc::clone(self)))
    }

    /// Doubles the timeout, unless it has been doubled since an attempt began that had this one.
    fn exceeded(&self, timeout: Duration) {
        let mut current = lock(&self.current);
        if *current == timeout {
            *current = (timeout * 2).min(self.limits.idle_timeout * MAX_FACTOR);
        }
    }
}

/// Sets the timeout of each attempt at an upload; none if the body is small.
#[derive(Debug)]
pub(super) struct UploadTimeout(Option<Arc<UploadTimeouts>>);

impl Intercept for UploadTimeout {
    fn name(&self) -> &'static str {
        "UploadTimeout"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(timeouts) = &self.0 {
            let (read_timeout, connect_timeout) = (*lock(&timeouts.current), timeouts.limits.connect_timeout);
            let timeouts = TimeoutConfig::builder().connect_timeout(connect_timeout).read_timeout(read_timeout).build();
            config.interceptor_state().store_put(timeouts);
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let error = context.output_or_error().and_then(Result::err);
        let is_timeout = error
            .and_then(|error| error.as_connector_error())
            .is_some_and(|error| error.is_timeout() && chain(error).contains("read timeout"));
        if let (true, Some(timeouts)) = (is_timeout, &self.0)
            && let Some(timeout) = config.load::<TimeoutConfig>().and_then(TimeoutConfig::read_timeout)
        {
            timeouts.exceeded(timeout);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_doubles_once_for_all_attempts_that_exceed_it() {
        let second = Duration::from_secs(1);
        let timeouts = UploadTimeouts::new(RequestLimits {
            idle_timeout: second,
            connect_timeout: second,
            max_attempts: 1,
            max_in_flight: 1,
            is_quiet: true,
        });
        let current = || *lock(&timeouts.current);
        for expected in [2, 4, 8, 8, 8] {
            let exceeded = current();
            for _ in 0..12 {
                timeouts.exceeded(exceeded);
            }
            assert_eq!(current(), second * expected);
        }
    }
}
