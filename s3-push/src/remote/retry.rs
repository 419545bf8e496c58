//! When a request is repeated, and how long is waited before: what the SDK does, and what it leaves undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_s3::config::interceptors::{BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction, RetryClassifierPriority};
use aws_smithy_types::retry::ErrorKind;

use crate::remote::concurrency::AdaptiveLimit;

/// Attempts at one request, the first included, unless the user says otherwise.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 8;
/// Requests in flight at once, unless the user says otherwise.
const IN_FLIGHT: u16 = 16;
/// Wait before the first repetition; it doubles with each, and a random part of it is waited.
pub const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait before a repetition, also where the service asks for more.
pub const MAX_BACKOFF: Duration = Duration::from_secs(20);

/// How much is asked of a service at once, and how long is waited for one that does not do as it is asked.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// An answer must begin, and something must move, within this time.
    pub idle: Duration,
    /// Attempts at one request, the first included.
    pub attempts: u32,
    /// Most requests in flight at once.
    pub in_flight: u16,
}

impl From<Duration> for RequestLimits {
    /// The defaults of all but the idle time.
    fn from(idle: Duration) -> Self {
        Self { idle, attempts: DEFAULT_MAX_ATTEMPTS, in_flight: IN_FLIGHT }
    }
}

/// Repetitions of what the SDK cannot repeat, such as to read a body that was cut off.
#[derive(Debug)]
pub struct Backoff {
    done: u32,
    most: u32,
}

impl Backoff {
    /// So many attempts, the first included.
    #[must_use]
    pub fn new(attempts: u32) -> Self {
        Self { done: 1, most: attempts }
    }

    /// Whether to try again; waits before.
    pub async fn again(&mut self) -> bool {
        self.after(None).await
    }

    /// As [`Backoff::again`], but waits at least as long as the service asked for, within reason.
    pub async fn after(&mut self, asked: Option<Duration>) -> bool {
        if self.done >= self.most {
            return false;
        }
        let longest = (INITIAL_BACKOFF * 2_u32.saturating_pow(self.done - 1)).min(MAX_BACKOFF);
        self.done += 1;
        let asked = asked.unwrap_or_default().min(MAX_BACKOFF);
        tokio::time::sleep(asked + longest.mul_f64(fastrand::f64())).await;
        true
    }
}

/// Whether the status is one by which a service asks for patience.
fn pleads(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Repeats after 429, which the SDK takes for final, and after as long as `Retry-After` asks for.
#[derive(Debug)]
pub struct ThrottleClassifier;

impl ClassifyRetry for ThrottleClassifier {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(response) = context.response().filter(|response| pleads(response.status().as_u16())) else {
            return RetryAction::NoActionIndicated;
        };
        match (retry_after(response), response.status().as_u16()) {
            // A little more, or all who were refused come back at the same time.
            (Some(delay), _) if !delay.is_zero() => {
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

fn retry_after(response: &HttpResponse) -> Option<Duration> {
    response.headers().get("retry-after").and_then(asked_for)
}

/// How long a service asks to be left in peace, by the value of its `Retry-After`: seconds; the other form, a date, is
/// not seen from S3.
#[must_use]
pub fn asked_for(retry_after: &str) -> Option<Duration> {
    retry_after.trim().parse().ok().map(Duration::from_secs)
}

/// Counts attempts, the SDK's repetitions included, and tells the limit of what came back.
#[derive(Debug)]
pub struct AttemptObserver {
    /// How many there were.
    pub count: Arc<AtomicU64>,
    /// The limit of the bucket.
    pub limit: Arc<AdaptiveLimit>,
}

impl Intercept for AttemptObserver {
    fn name(&self) -> &'static str {
        "AttemptObserver"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        match context.response().map(|response| response.status().as_u16()) {
            Some(status) if pleads(status) => self.limit.refused(),
            Some(_) => self.limit.answered(),
            None => self.limit.lost(),
        }
        Ok(())
    }
}
