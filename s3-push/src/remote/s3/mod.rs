//! Buckets: the few S3 operations that a binary cache needs, on top of the AWS SDK. Every request is sent by
//! `Bucket::send`, which takes a permit of the bucket's concurrency limit, so that no operation can exceed it.

mod complete_response;
mod conditions;
mod connect;
mod copy;
mod credentials;
mod delete;
mod errors;
mod multipart;
mod object_options;
mod read;
mod region;
mod upload_timeouts;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use crate::remote::concurrency::{AdaptiveLimit, Permit};
use crate::remote::first_response::FirstResponse;
use crate::remote::location::Location;
use crate::remote::retry::{Backoff, RequestLimits};

use credentials::InstanceError;
use upload_timeouts::UploadTimeouts;

pub use connect::Access;
pub use delete::MAX_DELETED_AT_ONCE;
pub use multipart::{IncompleteUpload, MultipartUpload, RemotePart, UploadedPart};
pub use object_options::{Encryption, ObjectLockRetention, ObjectOptions, RetentionMode};
pub use read::{ListDepth, ListFrom, ListedObject, ObjectHead, Page};
pub use write::PutOutcome;

/// A bucket, or the part of it below a prefix. Keys are relative to the prefix.
pub struct Bucket {
    client: Client,
    /// The client for reads, once it turned out that the bucket is in another region than `client` is for.
    redirected: OnceLock<Client>,
    location: Location,
    /// The prefix of messages.
    tool: &'static str,
    object_options: ObjectOptions,
    /// Writes do nothing and report success.
    dry_run: bool,
    limits: RequestLimits,
    upload_timeouts: Arc<UploadTimeouts>,
    limit: Arc<AdaptiveLimit>,
    first_response: Arc<FirstResponse>,
    /// Whether the tool has an option by which requests are not signed.
    can_opt_out: bool,
    /// Why the instance metadata service has no credentials.
    instance_error: InstanceError,
    credentials: Option<SharedCredentialsProvider>,
    /// Whether requests are unsigned because no credentials were found.
    lacks_credentials: bool,
    /// Set once an object was read.
    is_readable: AtomicBool,
    /// Set once a read was forbidden, and reported.
    was_forbidden: AtomicBool,
    /// Cleared if the service turns out not to support conditional writes.
    supports_conditional_writes: AtomicBool,
    /// Set if unsigned parts are forbidden, as the policy of a bucket can do.
    must_sign_parts: AtomicBool,
    /// Cleared if the service turns out not to delete several objects in one request.
    supports_delete_objects: AtomicBool,
    /// Whether the service applies the conditions of writes, once that was tried.
    applies_conditions: OnceCell<bool>,
    /// Missing permissions for optional requests that were reported.
    reported_permissions: Mutex<Vec<&'static str>>,
    counts: RequestCounts,
}

type Sdk<E> = SdkError<E, HttpResponse>;

impl Bucket {
    /// Sets the options of the objects that are written.
    #[must_use]
    pub fn with_object_options(mut self, options: ObjectOptions) -> Self {
        self.object_options = options;
        self
    }

    /// Sets whether writes do nothing and report success.
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Returns whether writes do nothing and report success.
    #[must_use]
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Returns the location of the bucket.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Returns the URL of an object, for messages; that of the cache for an empty key.
    #[must_use]
    pub fn display_url(&self, key: &str) -> String {
        self.location.display_url(key)
    }

    /// Returns the number of attempts at one request, including the first.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.limits.max_attempts
    }

    /// Returns the maximum number of requests in flight.
    #[must_use]
    pub fn max_in_flight(&self) -> u16 {
        self.limits.max_in_flight
    }

    /// Returns whether a read was forbidden and treated as if the object were missing.
    #[must_use]
    pub fn was_forbidden(&self) -> bool {
        self.was_forbidden.load(Ordering::Relaxed)
    }

    /// Returns whether the user may not read, so that nothing is known about objects that seem to be missing: a read was
    /// forbidden, and none has succeeded.
    #[must_use]
    pub fn cannot_read(&self) -> bool {
        self.was_forbidden() && !self.is_readable.load(Ordering::Relaxed)
    }

    /// Returns the requests so far by kind, without kinds that did not occur. Retries are not counted.
    #[must_use]
    pub fn request_counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.by_kind.iter().map(|count| count.load(Ordering::Relaxed));
        let named = RequestKind::ALL.iter().zip(counts).map(|((_, name), count)| (*name, count));
        named.filter(|(_, count)| *count > 0).collect()
    }

    /// Returns how many retries there were.
    #[must_use]
    pub fn retries(&self) -> u64 {
        let requests: u64 = self.counts.by_kind.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        self.counts.attempts.load(Ordering::Relaxed).saturating_sub(requests)
    }

    /// Sends a request. It holds a permit until its response has arrived, also while the SDK delays a retry: so a server
    /// that throttles gets fewer requests.
    fn send<'a, T: Send, E: Send>(
        &'a self,
        kind: RequestKind,
        request: impl Future<Output = Result<T, Sdk<E>>> + Send + 'a,
    ) -> impl Future<Output = Result<T, Sdk<E>>> + Send {
        let sending = self.send_keeping_permit(kind, request);
        async { sending.await.0 }
    }

    /// Sends a request whose response is not complete yet when this returns; the caller keeps the permit until it is.
    ///
    /// Boxed, because the futures of the SDK are several kilobytes large, and so would be every future that awaits one.
    fn send_keeping_permit<'a, T: Send, E: Send>(
        &'a self,
        kind: RequestKind,
        request: impl Future<Output = Result<T, Sdk<E>>> + Send + 'a,
    ) -> BoxFuture<'a, (Result<T, Sdk<E>>, Permit)> {
        let sending = async move {
            let permit = self.limit.acquire().await;
            self.counts.by_kind[kind as usize].fetch_add(1, Ordering::Relaxed);
            (self.first_response.watch(request).await, permit)
        };
        sending.boxed()
    }

    /// Returns the delays between attempts at what the SDK does not retry.
    fn backoff(&self) -> Backoff {
        Backoff::new(self.limits.max_attempts)
    }
}

/// How many requests were made.
#[derive(Debug, Default)]
struct RequestCounts {
    by_kind: [AtomicU64; RequestKind::ALL.len()],
    /// Attempts of the SDK, retries included.
    attempts: Arc<AtomicU64>,
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestKind {
    Get,
    Head,
    Put,
    List,
    CreateMultipartUpload,
    UploadPart,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListMultipartUploads,
    ListParts,
    Delete,
    Copy,
}

impl RequestKind {
    /// All kinds in the order of their declaration, with their names in reports.
    const ALL: [(Self, &str); 12] = [
        (Self::Get, "get"),
        (Self::Head, "head"),
        (Self::Put, "put"),
        (Self::List, "list"),
        (Self::CreateMultipartUpload, "createMultipartUpload"),
        (Self::UploadPart, "uploadPart"),
        (Self::CompleteMultipartUpload, "completeMultipartUpload"),
        (Self::AbortMultipartUpload, "abortMultipartUpload"),
        (Self::ListMultipartUploads, "listMultipartUploads"),
        (Self::ListParts, "listParts"),
        (Self::Delete, "delete"),
        (Self::Copy, "copy"),
    ];
}
