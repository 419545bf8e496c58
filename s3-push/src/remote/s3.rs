//! A bucket that can be asked and written: the AWS SDK behind the few calls that a binary cache needs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use nar_pack::stdio;
use narinfo_gen::compression::decode_content;

use crate::publish::object_options::ObjectOptions;
use crate::remote::concurrency::{AdaptiveLimit, Permit};
use crate::remote::location::{DEFAULT_REGION, Location};
use crate::remote::permission::{RequiredPermission, is_news};
use crate::remote::retry::{AttemptObserver, Backoff, INITIAL_BACKOFF, RequestLimits, ThrottleClassifier};

/// Time in which a connection must be made.
const CONNECT: Duration = Duration::from_secs(10);
/// What repetitions cost is taken from a budget of this bucket's own: the process-wide one, of 500 tokens, is spent by
/// one bad minute of bulk work.
const RETRY_TOKENS: usize = 10_000;
/// What a request that succeeds puts back.
const RETRY_REWARD: f32 = 5.0;

const NO_CREDENTIALS: &str =
    "no AWS credentials found in the environment, profile, SSO, web identity, container or instance";

/// How requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// With credentials from the default chain.
    Signed,
    /// Not at all; the bucket must be public.
    Anonymous,
    /// Signed when the default chain has credentials, else not at all: for reading.
    SignedIfPossible,
}

/// A bucket with a prefix.
pub struct Bucket {
    client: Client,
    location: Location,
    tool: &'static str,
    storage: ObjectOptions,
    /// Nothing is written; writes say that they succeeded.
    dry_run: bool,
    hinted: AtomicBool,
    /// Whether requests go unsigned because no credentials were found.
    lacks_credentials: bool,
    /// Set once anything was read.
    readable: AtomicBool,
    /// Cleared when the service turns out not to have conditional writes.
    conditional: AtomicBool,
    requests: Requests,
    limit: Arc<AdaptiveLimit>,
    limits: RequestLimits,
    credentials: Option<SharedCredentialsProvider>,
}

/// Requests made, by kind, and how often one was repeated.
#[derive(Debug, Default)]
struct Requests {
    kinds: [AtomicU64; Kind::ALL.len()],
    attempts: Arc<AtomicU64>,
}

/// The kinds of requests that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Head,
    Put,
    List,
    Begin,
    Part,
    Complete,
    Abort,
    ListUploads,
    ListParts,
}

impl Kind {
    const ALL: [(Self, &str); 10] = [
        (Self::Get, "get"),
        (Self::Head, "head"),
        (Self::Put, "put"),
        (Self::List, "list"),
        (Self::Begin, "createMultipartUpload"),
        (Self::Part, "uploadPart"),
        (Self::Complete, "completeMultipartUpload"),
        (Self::Abort, "abortMultipartUpload"),
        (Self::ListUploads, "listMultipartUploads"),
        (Self::ListParts, "listParts"),
    ];
}

/// What became of a conditional write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is new.
    Created,
    /// An object with that key was there; it is unchanged.
    Existed,
}

/// An object that is being read.
pub struct Object {
    /// Its size in bytes, where the service tells.
    pub size: Option<u64>,
    /// `Content-Encoding`, if any.
    pub encoding: Option<String>,
    /// The entity tag as the service wrote it.
    pub etag: Option<String>,
    /// `Content-Range`, where only a part was asked for and the service sends it.
    pub range: Option<String>,
    /// Its bytes.
    pub body: ByteStream,
}

/// What a service says when it is asked for a part of an object.
pub enum Reply {
    /// The part, or the whole object where the service has no ranges.
    Object(Box<Object>),
    /// The object is not there.
    Missing,
    /// The object is another one than that of the entity tag, or too short for the range.
    Changed,
}

/// A short object that was read.
#[derive(Debug, Clone)]
pub struct TextObject {
    /// What it says.
    pub text: String,
    /// The entity tag as the service wrote it.
    pub etag: Option<String>,
}

/// When an object may be written.
#[derive(Debug, Clone, Copy)]
enum Precondition<'a> {
    Always,
    New,
    Unchanged(&'a str),
}

/// Whether the chain gives credentials. Any error but that there are none is for the first request to tell.
async fn has_credentials(config: &aws_config::SdkConfig) -> bool {
    let Some(provider) = config.credentials_provider() else { return false };
    !matches!(provider.provide_credentials().await, Err(CredentialsError::CredentialsNotLoaded(_)))
}

impl Object {
    /// Its bytes as they arrive; `shown` names the object in errors.
    pub fn into_stream(self, shown: String) -> impl Stream<Item = Result<Bytes>> + Send {
        stream::unfold(self.body, |mut body| async { body.next().await.map(|bytes| (bytes, body)) })
            .map(move |bytes| bytes.map_err(|error| Error::failed(format!("reading {shown}: {}", chain(&error)))))
    }
}

/// An entry of a listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The key, without the bucket's prefix.
    pub key: String,
    /// The entity tag without quotes; empty where the service tells none.
    pub etag: String,
}

/// Where a page of a listing begins.
#[derive(Debug, Clone)]
pub enum ListFrom {
    /// With the first key.
    Beginning,
    /// With the first key after this one.
    After(String),
    /// Where the page that told this token ended.
    Page(String),
}

/// One page of a listing.
pub struct Page {
    /// The entries.
    pub entries: Vec<Listed>,
    /// What to ask for the next page with.
    pub next: Option<String>,
}

/// A multipart upload under way.
#[derive(Debug, Clone)]
pub struct Multipart {
    /// Its key, below the prefix.
    pub key: String,
    id: String,
}

/// A part that is in the bucket already.
#[derive(Debug, Clone)]
pub struct RemotePart {
    /// Its size in bytes.
    pub size: u64,
    /// Its entity tag without quotes: the MD5 of its bytes, unless the service encrypts with keys of its own.
    pub etag: String,
    /// What completing the upload needs of it.
    pub completed: CompletedPart,
}

type Sdk<E> = SdkError<E, HttpResponse>;

impl Bucket {
    /// Sets up a client; nothing is sent yet. `tool` begins the hints that it prints.
    ///
    /// An answer must begin within the idle time of `limits`, and a transfer must not stall for longer; it may take as
    /// long as it likes.
    pub async fn connect(
        location: Location,
        access: Access,
        limits: impl Into<RequestLimits>,
        tool: &'static str,
    ) -> Self {
        let limits @ RequestLimits { idle, attempts, in_flight } = limits.into();
        // Proxies come from the environment, as everywhere; of itself the SDK asks nobody.
        let http = aws_smithy_http_client::Builder::new().build_with_connector_fn(|settings, _| {
            let tls = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring));
            let mut connector = tls.proxy_config(ProxyConfig::from_env());
            connector.set_connector_settings(settings.cloned());
            connector.build()
        });
        // Not the default chain: off EC2 it waits a second for an instance to tell its region.
        let mut profile = ProfileFileRegionProvider::builder();
        if let Some(name) = &location.profile {
            profile = profile.profile_name(name);
        }
        let region = RegionProviderChain::first_try(location.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(profile.build())
            .or_else(Region::new(DEFAULT_REGION));
        let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest())
            .http_client(http)
            .region(region)
            .retry_config(RetryConfig::standard().with_max_attempts(attempts).with_initial_backoff(INITIAL_BACKOFF))
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(idle).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(idle).build());
        if let Some(profile) = &location.profile {
            loader = loader.profile_name(profile);
        }
        if access == Access::Anonymous {
            loader = loader.no_credentials();
        }
        // In-memory bodies with a signed payload; many services refuse the trailing checksums that are the SDK's default.
        let mut sdk_config = loader.load().await;
        let lacks_credentials =
            access == Access::SignedIfPossible && location.profile.is_none() && !has_credentials(&sdk_config).await;
        if lacks_credentials {
            let mut unsigned = sdk_config.into_builder();
            unsigned.set_credentials_provider(None);
            sdk_config = unsigned.build();
        }
        let mut config = aws_sdk_s3::config::Builder::from(&sdk_config)
            .force_path_style(location.path_style())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_partition(
                RetryPartition::custom(tool)
                    .token_bucket(TokenBucket::builder().capacity(RETRY_TOKENS).success_reward(RETRY_REWARD).build())
                    .build(),
            );
        let (requests, limit) = (Requests::default(), AdaptiveLimit::new(in_flight));
        let attempts = AttemptObserver { count: Arc::clone(&requests.attempts), limit: Arc::clone(&limit) };
        config = config.interceptor(attempts).retry_classifier(ThrottleClassifier);
        if let Some(url) = location.endpoint_url() {
            config = config.endpoint_url(url);
        }
        if lacks_credentials {
            config = config.allow_no_auth();
        }
        Self {
            client: Client::from_conf(config.build()),
            location,
            tool,
            storage: ObjectOptions::default(),
            dry_run: false,
            hinted: AtomicBool::new(false),
            lacks_credentials,
            readable: AtomicBool::new(false),
            conditional: AtomicBool::new(true),
            requests,
            limit,
            limits,
            credentials: sdk_config.credentials_provider().filter(|_| access != Access::Anonymous),
        }
    }

    /// The same bucket, in which objects are written with these headers.
    #[must_use]
    pub fn with_storage(mut self, storage: ObjectOptions) -> Self {
        self.storage = storage;
        self
    }

    /// The same bucket, in which nothing is written.
    #[must_use]
    pub fn dry(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// A place among the requests in flight: at most as many as are allowed, fewer while the service asks for patience.
    ///
    /// # Errors
    /// Fails when the work is given up.
    pub async fn slot(&self) -> Result<Permit> {
        self.limit.slot().await
    }

    /// Which provider gave the credentials that requests are signed with; never the credentials themselves.
    pub async fn provider(&self) -> &'static str {
        let Some(provider) = &self.credentials else { return "none, requests are not signed" };
        match provider.provide_credentials().await {
            Ok(credentials) => {
                let features = credentials.get_property::<Vec<AwsCredentialFeature>>();
                features.and_then(|features| features.iter().find_map(provider_name)).unwrap_or("a provider of the SDK")
            }
            Err(_) => "none found",
        }
    }

    /// Whether a read was forbidden, and taken for a sign that the object is missing.
    #[must_use]
    pub fn was_forbidden(&self) -> bool {
        self.hinted.load(Ordering::Relaxed)
    }

    /// Where the bucket is.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Requests made so far by kind, without kinds of which there were none; repetitions are not counted.
    #[must_use]
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        let counts = self.requests.kinds.iter().map(|count| count.load(Ordering::Relaxed));
        Kind::ALL.iter().zip(counts).filter(|(_, count)| *count > 0).map(|((_, name), count)| (*name, count)).collect()
    }

    /// How often a request was repeated.
    #[must_use]
    pub fn retries(&self) -> u64 {
        let requests: u64 = self.requests.kinds.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        self.requests.attempts.load(Ordering::Relaxed).saturating_sub(requests)
    }

    fn count(&self, kind: Kind) {
        self.requests.kinds[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Begins to read an object; none when it is not there.
    ///
    /// # Errors
    /// Fails with the service's word, and when the bucket itself is not there.
    pub async fn get(&self, object: &str) -> Result<Option<Object>> {
        match self.get_part(object, None, None).await? {
            Reply::Object(object) => Ok(Some(*object)),
            Reply::Missing | Reply::Changed => Ok(None),
        }
    }

    /// Begins to read a part of an object, given as HTTP writes it (`bytes=0-99`), if its entity tag is still `etag`.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub async fn get_part(&self, object: &str, range: Option<String>, etag: Option<&str>) -> Result<Reply> {
        self.count(Kind::Get);
        let ranged = range.is_some();
        let request = self
            .client
            .get_object()
            .bucket(&self.location.bucket)
            .key(self.location.key(object))
            .set_range(range)
            .set_if_match(etag.map(str::to_owned));
        match request.send().await {
            Ok(output) => {
                self.readable.store(true, Ordering::Relaxed);
                Ok(Reply::Object(Box::new(Object {
                    size: output.content_length.and_then(|size| u64::try_from(size).ok()),
                    encoding: output.content_encoding,
                    etag: output.e_tag,
                    range: output.content_range,
                    body: output.body,
                })))
            }
            Err(error) if etag.is_some() && status(&error) == Some(412) => Ok(Reply::Changed),
            Err(error) if ranged && status(&error) == Some(416) => Ok(Reply::Changed),
            Err(error) => self.absent(&error, "reading", object).map(|()| Reply::Missing),
        }
    }

    /// Reads an object of at most `limit` bytes of text, undoing its `Content-Encoding`; none when it is not there.
    ///
    /// # Errors
    /// As [`Bucket::get`]; refuses a larger object.
    pub async fn get_small(&self, object: &str, limit: usize) -> Result<Option<TextObject>> {
        let mut tries = self.tries();
        let (etag, encoding, bytes) = loop {
            let Some(mut found) = self.get(object).await? else { return Ok(None) };
            let (etag, encoding) = (found.etag.take(), found.encoding.take());
            match collect(found.into_stream(self.location.shown(object)), limit).await {
                Ok(Some(bytes)) => break (etag, encoding, bytes),
                Ok(None) => {
                    let shown = self.location.shown(object);
                    return Err(Error::refused(format!("{shown} is larger than {limit} bytes")));
                }
                Err(_) if tries.again().await => {}
                Err(failure) => return Err(failure),
            }
        };
        let bytes = decode_content(bytes, encoding.as_deref(), limit).context(|| self.location.shown(object))?;
        let text = stdio::utf8(bytes).context(|| self.location.shown(object))?;
        Ok(Some(TextObject { text, etag }))
    }

    /// Attempts at one request, the first included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.limits.attempts
    }

    /// AttemptObserver at what the SDK does not repeat by itself.
    #[must_use]
    pub fn tries(&self) -> Backoff {
        Backoff::new(self.limits.attempts)
    }

    /// Size of an object in bytes; none when it is not there.
    ///
    /// # Errors
    /// Fails with the service's word.
    pub async fn size(&self, object: &str) -> Result<Option<u64>> {
        self.count(Kind::Head);
        let request = self.client.head_object().bucket(&self.location.bucket).key(self.location.key(object));
        match request.send().await {
            Ok(output) => Ok(Some(output.content_length.and_then(|size| u64::try_from(size).ok()).unwrap_or(0))),
            Err(error) => self.absent(&error, "looking for", object).map(|()| None),
        }
    }

    /// Passes when the error says that the object is not there.
    fn absent<E: ProvideErrorMetadata + RequiredPermission + std::error::Error + 'static>(
        &self,
        error: &Sdk<E>,
        doing: &str,
        object: &str,
    ) -> Result {
        let code = error.code().unwrap_or_default();
        match status(error) {
            Some(404) if code != "NoSuchBucket" => Ok(()),
            // A public bucket would have given its nix-cache-info.
            Some(403) if self.lacks_credentials && !self.readable.load(Ordering::Relaxed) => {
                Err(Error::failed(format!(
                    "{doing} {}: {NO_CREDENTIALS}, and without them the bucket refuses (403)",
                    self.location.shown(object)
                )))
            }
            // Without permission to list, a key that is not there is forbidden, not absent.
            Some(403) if matches!(code, "" | "AccessDenied" | "Forbidden") => {
                if !self.hinted.swap(true, Ordering::Relaxed) {
                    process::print_message(
                        self.tool,
                        format!(
                            "{}: forbidden (403), taken for missing; if it is there, s3:GetObject is not allowed, and without s3:ListBucket nobody can tell",
                            self.location.shown(object)
                        ),
                    );
                }
                Ok(())
            }
            _ => Err(self.failure(error, doing, object)),
        }
    }

    /// What follows when a request is forbidden.
    #[must_use]
    pub fn takes(&self, permission: &str) -> String {
        let unsigned = if self.lacks_credentials { format!(", and {NO_CREDENTIALS}") } else { String::new() };
        format!("; it takes {permission}{unsigned}")
    }

    fn failure<E: ProvideErrorMetadata + RequiredPermission + std::error::Error + 'static>(
        &self,
        error: &Sdk<E>,
        doing: &str,
        object: &str,
    ) -> Error {
        let takes = if is_forbidden(error) { self.takes(E::PERMISSION) } else { String::new() };
        Error::failed(format!("{doing} {}: {}{takes}", self.location.shown(object), self.cause(error)))
    }

    /// What came of a request that a push can do without. That it is forbidden is said once.
    fn optional<T, E: ProvideErrorMetadata + RequiredPermission + std::error::Error + 'static>(
        &self,
        result: Result<T, Sdk<E>>,
        doing: &str,
        object: &str,
    ) -> Option<T> {
        let tell = |error: &Sdk<E>| {
            if is_forbidden(error) && is_news(E::PERMISSION) {
                process::print_message(self.tool, self.failure(error, doing, object));
            }
        };
        result.inspect_err(tell).ok()
    }

    /// The service's word where it said one, else what happened on the way.
    fn cause<E: ProvideErrorMetadata + std::error::Error + 'static>(&self, error: &Sdk<E>) -> String {
        let said = match (error.code(), error.message(), status(error)) {
            (Some(code), Some(message), Some(status)) => Some(format!("{message} ({code}, HTTP {status})")),
            (Some(code), None, Some(status)) => Some(format!("{code} (HTTP {status})")),
            (None, _, Some(403)) => Some("access denied (HTTP 403)".to_owned()),
            (None, _, Some(status)) if error.as_service_error().is_some() => Some(format!("HTTP {status}")),
            _ => None,
        };
        let text = chain(error);
        match (said, error) {
            (Some(said), _) => said,
            // The SDK goes on to list what each of a dozen providers said.
            (None, _) if text.contains("no credentials found in chain") || text.contains("no providers in chain") => {
                match &self.location.profile {
                    Some(profile) => format!("the AWS profile {profile:?} gives no credentials"),
                    None => NO_CREDENTIALS.to_owned(),
                }
            }
            (None, SdkError::DispatchFailure(failure)) if failure.is_io() || failure.is_timeout() => {
                format!("cannot reach {}: {}", self.service(), root_cause(error))
            }
            (None, SdkError::TimeoutError(_)) => format!("{} did not answer in time", self.service()),
            _ => text.trim_start_matches("dispatch failure: ").trim_start_matches("other: ").to_owned(),
        }
    }

    fn service(&self) -> String {
        self.location.endpoint_url().unwrap_or_else(|| "AWS".to_owned())
    }

    /// Whether bodies are sent with a checksum in a header: on AWS, and where retention demands it.
    fn checksums(&self) -> bool {
        self.location.is_aws() || self.storage.needs_checksum()
    }

    /// The checksum of a body as its header has it, if one is sent. The SDK names the algorithm and sends no checksum
    /// where it does not have to, which a service refuses that was promised one.
    fn checksum(&self, body: &Bytes) -> Option<String> {
        self.checksums().then(|| BASE64.encode(crc32fast::hash(body).to_be_bytes()))
    }

    /// Writes an object.
    ///
    /// # Errors
    /// Fails with the service's word; that a write is forbidden is fatal too.
    pub async fn put(&self, object: &str, content_type: &str, body: Bytes) -> Result {
        self.put_inner(object, content_type, body, Precondition::Always).await.map(|_| ())
    }

    /// Writes an object unless there is one with that key, where the service can do that, else writes it.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn put_new(&self, object: &str, content_type: &str, body: Bytes) -> Result<PutOutcome> {
        self.put_inner(object, content_type, body, Precondition::New).await
    }

    /// Writes an object in the place of the one with that entity tag; [`PutOutcome::Existed`] when there is another by now.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn put_over(
        &self,
        object: &str,
        content_type: &str,
        body: Bytes,
        etag: Option<&str>,
    ) -> Result<PutOutcome> {
        self.put_inner(object, content_type, body, etag.map_or(Precondition::Always, Precondition::Unchanged)).await
    }

    async fn put_inner(
        &self,
        object: &str,
        content_type: &str,
        body: Bytes,
        when: Precondition<'_>,
    ) -> Result<PutOutcome> {
        if self.dry_run {
            return Ok(PutOutcome::Created);
        }
        let mut conflicts = self.tries();
        loop {
            self.count(Kind::Put);
            let conditional = !matches!(when, Precondition::Always) && self.conditional.load(Ordering::Relaxed);
            let request = self
                .storage
                .on_put(self.client.put_object())
                .bucket(&self.location.bucket)
                .key(self.location.key(object))
                .content_type(content_type)
                .set_checksum_crc32(self.checksum(&body))
                .set_if_none_match((conditional && matches!(when, Precondition::New)).then(|| "*".to_owned()))
                .set_if_match(match when {
                    Precondition::Unchanged(etag) if conditional => Some(etag.to_owned()),
                    _ => None,
                })
                .body(ByteStream::from(body.clone()));
            match request.send().await {
                Ok(_) => return Ok(PutOutcome::Created),
                Err(error) if conditional && status(&error) == Some(412) => return Ok(PutOutcome::Existed),
                Err(error) if conditional && self.lacks_conditions(&error) => {}
                Err(error) if conditional && conflicting(&error) && conflicts.again().await => {}
                Err(error) => return Err(self.failure(&error, "writing", object)),
            }
        }
    }

    /// Notes that the service has no conditional writes, if that is what the error says.
    fn lacks_conditions<E: ProvideErrorMetadata>(&self, error: &Sdk<E>) -> bool {
        let lacks = status(error) == Some(501) || error.code() == Some("NotImplemented");
        if lacks {
            self.conditional.store(false, Ordering::Relaxed);
        }
        lacks
    }

    /// Begins a multipart upload.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn begin(&self, object: &str, content_type: &str) -> Result<Multipart> {
        if self.dry_run {
            return Ok(Multipart { key: object.to_owned(), id: String::new() });
        }
        self.count(Kind::Begin);
        let request = self
            .storage
            .on_multipart(self.client.create_multipart_upload())
            .bucket(&self.location.bucket)
            .key(self.location.key(object))
            .content_type(content_type)
            .set_checksum_algorithm(self.checksums().then_some(ChecksumAlgorithm::Crc32));
        let output = request.send().await.map_err(|error| self.failure(&error, "beginning an upload of", object))?;
        let id = output
            .upload_id
            .ok_or_else(|| Error::failed(format!("beginning an upload of {object}: no id came back")))?;
        Ok(Multipart { key: object.to_owned(), id })
    }

    /// Uploads one part; numbers begin at 1.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn part(&self, upload: &Multipart, number: i32, body: Bytes) -> Result<CompletedPart> {
        if self.dry_run {
            return Ok(CompletedPart::builder().part_number(number).build());
        }
        self.count(Kind::Part);
        let checksum = self.checksum(&body);
        let request = self
            .client
            .upload_part()
            .bucket(&self.location.bucket)
            .key(self.location.key(&upload.key))
            .upload_id(&upload.id)
            .part_number(number)
            .set_checksum_crc32(checksum.clone())
            .body(ByteStream::from(body));
        let output = request
            .send()
            .await
            .map_err(|error| self.failure(&error, &format!("uploading part {number} of"), &upload.key))?;
        Ok(CompletedPart::builder().part_number(number).set_e_tag(output.e_tag).set_checksum_crc32(checksum).build())
    }

    /// Makes the parts, in the order of their numbers, one object; with `only_new` unless there is one with that key.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn complete(&self, upload: &Multipart, parts: Vec<CompletedPart>, only_new: bool) -> Result<PutOutcome> {
        if self.dry_run {
            return Ok(PutOutcome::Created);
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut conflicts = self.tries();
        loop {
            self.count(Kind::Complete);
            let conditional = only_new && self.conditional.load(Ordering::Relaxed);
            let request = self
                .client
                .complete_multipart_upload()
                .bucket(&self.location.bucket)
                .key(self.location.key(&upload.key))
                .upload_id(&upload.id)
                .multipart_upload(parts.clone())
                .set_if_none_match(conditional.then(|| "*".to_owned()));
            match request.send().await {
                Ok(output) if output.e_tag.is_some() => return Ok(PutOutcome::Created),
                Ok(_) => {
                    return Err(Error::failed(format!(
                        "completing {}: the answer names no object",
                        self.location.shown(&upload.key)
                    )));
                }
                Err(error) if conditional && status(&error) == Some(412) => {
                    self.abort(upload).await;
                    return Ok(PutOutcome::Existed);
                }
                Err(error) if conditional && self.lacks_conditions(&error) => {}
                Err(error) if conditional && conflicting(&error) && conflicts.again().await => {}
                Err(error) => return Err(self.failure(&error, "completing", &upload.key)),
            }
        }
    }

    /// Gives an upload up. That this may fail changes nothing: a lifecycle rule is what removes the rest for certain.
    pub async fn abort(&self, upload: &Multipart) {
        if self.dry_run {
            return;
        }
        self.count(Kind::Abort);
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.location.bucket)
            .key(self.location.key(&upload.key))
            .upload_id(&upload.id);
        self.optional(request.send().await, "giving up the upload of", &upload.key);
    }

    /// An upload of that object which somebody began and did not end, with its parts: to be continued. None where there is
    /// none, and where the service cannot tell or does not want to.
    pub async fn unfinished(&self, object: &str) -> Option<(Multipart, HashMap<i32, RemotePart>)> {
        // What an upload was begun with cannot be changed, and nobody tells it.
        if self.dry_run || !self.storage.is_plain() {
            return None;
        }
        self.count(Kind::ListUploads);
        let key = self.location.key(object);
        let request = self.client.list_multipart_uploads().bucket(&self.location.bucket).prefix(&key);
        let listed = self.optional(request.send().await, "looking for unfinished uploads of", object)?;
        let uploads = listed.uploads.unwrap_or_default();
        let newest =
            uploads.into_iter().filter(|upload| upload.key.as_ref() == Some(&key)).max_by_key(|u| u.initiated)?;
        let upload = Multipart { key: object.to_owned(), id: newest.upload_id? };
        let mut parts = HashMap::new();
        let mut marker = None;
        loop {
            self.count(Kind::ListParts);
            let request = self
                .client
                .list_parts()
                .bucket(&self.location.bucket)
                .key(&key)
                .upload_id(&upload.id)
                .set_part_number_marker(marker);
            let page = self.optional(request.send().await, "listing the parts of", object)?;
            for part in page.parts.unwrap_or_default() {
                let size = part.size.and_then(|size| u64::try_from(size).ok());
                if let (Some(number), Some(size), Some(etag)) = (part.part_number, size, part.e_tag) {
                    let completed = CompletedPart::builder()
                        .part_number(number)
                        .e_tag(&etag)
                        .set_checksum_crc32(part.checksum_crc32)
                        .build();
                    parts.insert(number, RemotePart { size, etag: etag.trim_matches('"').to_owned(), completed });
                }
            }
            marker = page.next_part_number_marker.filter(|_| page.is_truncated == Some(true));
            if marker.is_none() {
                return Some((upload, parts));
            }
        }
    }

    /// One page, of at most 1,000 entries, of the keys that begin with `prefix` and have no further slash; none when
    /// listing is forbidden.
    ///
    /// # Errors
    /// Fails with the service's word.
    pub async fn list(&self, prefix: &str, start: ListFrom) -> Result<Option<Page>> {
        self.count(Kind::List);
        let (after, token) = match start {
            ListFrom::Beginning => (None, None),
            ListFrom::After(key) => (Some(self.location.key(&key)), None),
            ListFrom::Page(token) => (None, Some(token)),
        };
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.location.bucket)
            .prefix(self.location.key(prefix))
            .delimiter("/")
            .set_start_after(after)
            .set_continuation_token(token);
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) if status(&error) == Some(403) && error.code() == Some("AccessDenied") => return Ok(None),
            Err(error) => return Err(self.failure(&error, "listing", prefix)),
        };
        let next = output.next_continuation_token.filter(|_| output.is_truncated == Some(true));
        if output.is_truncated == Some(true) && next.is_none() {
            return Err(Error::failed(format!(
                "listing {}: the service has more, and does not say how to ask for it",
                self.location.shown(prefix)
            )));
        }
        let entries = output.contents.unwrap_or_default().into_iter().filter_map(|entry| {
            let key = entry.key?.strip_prefix(&self.location.prefix)?.to_owned();
            Some(Listed { key, etag: entry.e_tag.unwrap_or_default().trim_matches('"').to_owned() })
        });
        Ok(Some(Page { entries: entries.collect(), next }))
    }
}

/// Whether another writer of the same key is at it: it or we will win, after a few tries.
fn conflicting<E: ProvideErrorMetadata>(error: &Sdk<E>) -> bool {
    error.code() == Some("ConditionalRequestConflict")
}

/// All bytes of a body; none when there are more than `limit`.
async fn collect(body: impl Stream<Item = Result<Bytes>>, limit: usize) -> Result<Option<Vec<u8>>> {
    let (mut bytes, mut body) = (Vec::new(), std::pin::pin!(body));
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        if bytes.len() + chunk.len() > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// A provider of credentials in a person's words; none for what tells of something else.
fn provider_name(feature: &AwsCredentialFeature) -> Option<&'static str> {
    use AwsCredentialFeature as Feature;
    Some(match feature {
        Feature::CredentialsEnvVars => "the environment",
        Feature::CredentialsEnvVarsStsWebIdToken
        | Feature::CredentialsProfileStsWebIdToken
        | Feature::CredentialsStsAssumeRoleWebId => "a web identity token",
        Feature::CredentialsSso | Feature::CredentialsProfileSso => "SSO",
        Feature::CredentialsProcess | Feature::CredentialsProfileProcess => "a credential process",
        Feature::CredentialsStsAssumeRole => "an assumed role",
        Feature::CredentialsProfile
        | Feature::CredentialsProfileSourceProfile
        | Feature::CredentialsProfileNamedProvider
        | Feature::CredentialsProfileLogin => "a profile",
        Feature::CredentialsHttp => "the container",
        Feature::CredentialsImds => "the instance",
        _ => return None,
    })
}

/// Whether the request was understood and is not allowed; a wrong key or signature is another matter.
fn is_forbidden<E: ProvideErrorMetadata>(error: &Sdk<E>) -> bool {
    status(error) == Some(403) && matches!(error.code(), None | Some("AccessDenied" | "Forbidden"))
}

fn status<E>(error: &Sdk<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// An error and what it stems from, on one line, without saying anything twice.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What an error stems from in the end.
#[must_use]
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
