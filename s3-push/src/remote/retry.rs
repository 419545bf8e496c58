//! Retries: which requests are retried, after which delay. The SDK retries its requests with exponential backoff and
//! jitter; `ThrottleClassifier` makes it treat 429 as throttling and honor `Retry-After`. [`Backoff`] covers what the
//! SDK cannot retry: plain HTTP requests, truncated bodies, and conflicting conditional writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_runtime::service_clock_skew::DisableClockSkewCorrection;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::orchestrator::OrchestratorError;
use aws_smithy_runtime_api::client::retries::RequestAttempts;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction, RetryClassifierPriority};
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::{Storable, StoreReplace};
use aws_smithy_types::date_time::Format;
use aws_smithy_types::retry::ErrorKind;

use crate::remote::concurrency::{AdaptiveLimit, AwaitedResponse};
use crate::remote::first_response::FirstResponse;
use crate::remote::hints::is_permanent;

/// Default for the attempts at one request, including the first.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 8;
/// Longest delay before the first retry. It doubles with each retry; the delay is a random part of it.
pub(super) const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
/// Longest delay before any retry, even if the server asks for more.
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// The first date of a response that is not believed, in seconds since 1970: 1 January 9000. The SDK adds the difference
/// between the clocks to the time of a retry, and panics if the result is after the year 9999.
const MIN_IMPLAUSIBLE_DATE: i64 = 221_845_392_000;

/// Limits on the requests to one remote cache.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Time without progress after which an attempt is aborted: a response must begin within it, and a body must not
    /// stall for longer. A transfer as a whole may take any time.
    pub idle_timeout: Duration,
    /// Time in which a connection must be established.
    pub connect_timeout: Duration,
    /// Attempts at one request, including the first.
    pub max_attempts: u32,
    /// Requests in flight at the same time.
    pub max_in_flight: u16,
    /// Whether no note is printed while a server does not respond.
    pub is_quiet: bool,
}

impl RequestLimits {
    /// Returns the message of an attempt that was aborted after the idle timeout.
    pub(super) fn timeout_message(&self) -> String {
        format!("timed out after {} seconds without progress", self.idle_timeout.as_secs())
    }

    /// Returns the message of an attempt that was aborted because no connection was established.
    pub(super) fn connect_timeout_message(&self) -> String {
        format!("timed out after {} seconds", self.connect_timeout.as_secs())
    }
}

/// Counts the attempts at one operation and delays the retries: exponential backoff with full jitter.
#[derive(Debug)]
pub struct Backoff {
    attempts: u32,
    max_attempts: u32,
}

impl Backoff {
    /// Allows `max_attempts` attempts, including the first.
    #[must_use]
    pub fn new(max_attempts: u32) -> Self {
        Self { attempts: 1, max_attempts }
    }

    /// Returns the number of the current attempt; the first one is 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempts
    }

    /// Waits and returns true, or returns false at once when no attempt is left.
    pub async fn next_attempt(&mut self) -> bool {
        self.next_attempt_after(None).await
    }

    /// Does the same as [`Backoff::next_attempt`], but waits at least `retry_after`, up to a maximum of 20 seconds.
    pub async fn next_attempt_after(&mut self, retry_after: Option<Duration>) -> bool {
        if self.attempts >= self.max_attempts {
            return false;
        }
        let max_jitter = (INITIAL_BACKOFF * 2_u32.saturating_pow(self.attempts - 1)).min(MAX_BACKOFF);
        self.attempts += 1;
        let retry_after = retry_after.unwrap_or_default().min(MAX_BACKOFF);
        tokio::time::sleep(retry_after + max_jitter.mul_f64(fastrand::f64())).await;
        true
    }
}

/// Returns whether a server that responds with this status throttles.
pub(super) fn is_throttling(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Parses the value of a `Retry-After` header (RFC 9110, section 10.2.3): a number of seconds or an HTTP date.
pub(super) fn parse_retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Makes the SDK retry after 429, which it regards as permanent, and wait as long as `Retry-After` requests.
#[derive(Debug)]
pub(super) struct ThrottleClassifier;

impl ClassifyRetry for ThrottleClassifier {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(response) = context.response().filter(|response| is_throttling(response.status().as_u16())) else {
            return RetryAction::NoActionIndicated;
        };
        let retry_after = response.headers().get("retry-after").and_then(parse_retry_after);
        match (retry_after, response.status().as_u16()) {
            (Some(delay), _) if !delay.is_zero() => {
                // Jitter: otherwise all throttled requests are sent again at the same time.
                let delay = delay.min(MAX_BACKOFF).mul_f64(1.0 + fastrand::f64() / 4.0);
                RetryAction::retryable_error_with_explicit_delay(ErrorKind::ThrottlingError, delay)
            }
            (_, 429) => RetryAction::throttling_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "ThrottleClassifier"
    }

    fn priority(&self) -> RetryClassifierPriority {
        RetryClassifierPriority::run_after(RetryClassifierPriority::transient_error_classifier())
    }
}

/// Makes the SDK not repeat a request whose connection fails in the same way each time.
#[derive(Debug)]
pub(super) struct PermanentConnectionError;

impl ClassifyRetry for PermanentConnectionError {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let error = context.output_or_error().and_then(Result::err);
        match error.and_then(OrchestratorError::as_connector_error) {
            Some(error) if is_permanent(error) => RetryAction::RetryForbidden,
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "PermanentConnectionError"
    }

    fn priority(&self) -> RetryClassifierPriority {
        RetryClassifierPriority::run_after(RetryClassifierPriority::transient_error_classifier())
    }
}

/// Makes the SDK not retry after 500, for a request that a service may never answer otherwise and that can be done without.
#[derive(Debug)]
pub(super) struct PermanentInternalError;

impl ClassifyRetry for PermanentInternalError {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().map(|response| response.status().as_u16()) {
            Some(500) => RetryAction::RetryForbidden,
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "PermanentInternalError"
    }

    fn priority(&self) -> RetryClassifierPriority {
        RetryClassifierPriority::run_after(RetryClassifierPriority::transient_error_classifier())
    }
}

/// Counts the attempts of the SDK, retries included, and reports each of them to the concurrency limit.
#[derive(Debug)]
pub(super) struct AttemptObserver {
    pub attempts: Arc<AtomicU64>,
    pub limit: Arc<AdaptiveLimit>,
    pub first_response: Arc<FirstResponse>,
}

/// The attempt that an operation of the SDK makes. It is dropped with the operation, also if that is aborted.
#[derive(Debug)]
struct CurrentAttempt(Option<AwaitedResponse>);

impl Storable for CurrentAttempt {
    type Storer = StoreReplace<Self>;
}

impl Intercept for AttemptObserver {
    fn name(&self) -> &'static str {
        "AttemptObserver"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.first_response.record_attempt(config.load::<RequestAttempts>().map_or(1, RequestAttempts::attempts));
        config.interceptor_state().store_put(CurrentAttempt(Some(self.limit.start_attempt())));
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let attempt = config.get_mut_from_interceptor_state::<CurrentAttempt>().and_then(|attempt| attempt.0.take());
        // Without a response, dropping the attempt reports it as lost.
        if let (Some(attempt), Some(response)) = (attempt, context.response()) {
            self.first_response.record_response();
            if is_throttling(response.status().as_u16()) { attempt.throttled() } else { attempt.succeeded() }
        }
        Ok(())
    }
}

/// Makes the SDK ignore the date of a response if it is implausible. Other dates are believed, even if they are years away:
/// the clock of this host may be wrong, and signatures must have the time of the service.
#[derive(Debug)]
pub(super) struct ImplausibleDateFilter;

impl Intercept for ImplausibleDateFilter {
    fn name(&self) -> &'static str {
        "ImplausibleDateFilter"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // As the SDK parses it: without comparing the day of the week, and with fractions of seconds.
        let date = context.response().headers().get("date").map(|date| DateTime::from_str(date, Format::HttpDate));
        if date.is_some_and(|date| date.is_ok_and(|date| date.secs() >= MIN_IMPLAUSIBLE_DATE)) {
            config.interceptor_state().store_put(DisableClockSkewCorrection::from(true));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date() {
        assert_eq!(parse_retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_hours(1));
        let delay = parse_retry_after(&later).unwrap();
        assert!((3500..=3600).contains(&delay.as_secs()), "{delay:?}");
        for malformed in ["", "soon", "-1", "1.5"] {
            assert_eq!(parse_retry_after(malformed), None, "{malformed}");
        }
    }

    #[tokio::test]
    async fn backoff_counts_the_first_attempt() {
        let mut backoff = Backoff::new(2);
        assert!(backoff.next_attempt().await);
        assert!(!backoff.next_attempt().await);
        assert!(!Backoff::new(1).next_attempt().await);
    }
}
