//! A bucket that can be asked and written: the AWS SDK behind the few calls that a binary cache needs.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::{
    ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use nar_pack::stage::{self, Doing, Failure, Outcome};
use narinfo_gen::compression::decode_content;

use crate::location::{DEFAULT_REGION, Location};
use crate::storage::Storage;

/// Time in which a connection must be made.
const CONNECT: Duration = Duration::from_secs(10);
/// Wait before the first repetition.
const BACKOFF: Duration = Duration::from_millis(200);
/// Attempts at one request, the first included.
const ATTEMPTS: u32 = 5;

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
    storage: Storage,
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

/// Counts attempts, the SDK's repetitions included.
#[derive(Debug)]
struct CountAttempts(Arc<AtomicU64>);

impl Intercept for CountAttempts {
    fn name(&self) -> &'static str {
        "CountAttempts"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What became of a conditional write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
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
    Object(Object),
    /// The object is not there.
    Missing,
    /// The object is another one than that of the entity tag.
    Changed,
}

/// A short object that was read.
#[derive(Debug, Clone)]
pub struct Small {
    /// What it says.
    pub text: String,
    /// The entity tag as the service wrote it.
    pub etag: Option<String>,
}

/// When an object may be written.
#[derive(Debug, Clone, Copy)]
enum If<'a> {
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
    pub fn into_stream(self, shown: String) -> impl Stream<Item = Outcome<Bytes>> + Send {
        stream::unfold(self.body, |mut body| async { body.next().await.map(|bytes| (bytes, body)) })
            .map(move |bytes| bytes.map_err(|error| Failure::failed(format!("reading {shown}: {}", chain(&error)))))
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
    /// An answer must begin within `idle`, and a transfer must not stall for longer; it may take as long as it likes.
    pub async fn connect(location: Location, access: Access, idle: Duration, tool: &'static str) -> Self {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
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
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(BACKOFF))
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(idle).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(idle).build());
        if let Some(profile) = &location.profile {
            loader = loader.profile_name(profile);
        }
        if access == Access::Anonymous {
            loader = loader.no_credentials();
        }
        // In-memory bodies with a signed payload; many services refuse the trailing checksums that are the SDK's default.
        let mut loaded = loader.load().await;
        let lacks_credentials =
            access == Access::SignedIfPossible && location.profile.is_none() && !has_credentials(&loaded).await;
        if lacks_credentials {
            let mut unsigned = loaded.into_builder();
            unsigned.set_credentials_provider(None);
            loaded = unsigned.build();
        }
        let mut config = aws_sdk_s3::config::Builder::from(&loaded)
            .force_path_style(location.path_style())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_partition(
                RetryPartition::custom(tool)
                    .token_bucket(TokenBucket::builder().capacity(RETRY_TOKENS).success_reward(RETRY_REWARD).build())
                    .build(),
            );
        let requests = Requests::default();
        config = config.interceptor(CountAttempts(Arc::clone(&requests.attempts)));
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
            storage: Storage::default(),
            dry_run: false,
            hinted: AtomicBool::new(false),
            lacks_credentials,
            readable: AtomicBool::new(false),
            conditional: AtomicBool::new(true),
            requests,
        }
    }

    /// The same bucket, in which objects are written with these headers.
    #[must_use]
    pub fn with_storage(mut self, storage: Storage) -> Self {
        self.storage = storage;
        self
    }

    /// The same bucket, in which nothing is written.
    #[must_use]
    pub fn dry(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
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
    pub async fn get(&self, object: &str) -> Outcome<Option<Object>> {
        match self.get_part(object, None, None).await? {
            Reply::Object(object) => Ok(Some(object)),
            Reply::Missing | Reply::Changed => Ok(None),
        }
    }

    /// Begins to read a part of an object, given as HTTP writes it (`bytes=0-99`), if its entity tag is still `etag`.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub async fn get_part(&self, object: &str, range: Option<String>, etag: Option<&str>) -> Outcome<Reply> {
        self.count(Kind::Get);
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
                Ok(Reply::Object(Object {
                    size: output.content_length.and_then(|size| u64::try_from(size).ok()),
                    encoding: output.content_encoding,
                    etag: output.e_tag,
                    range: output.content_range,
                    body: output.body,
                }))
            }
            Err(error) if etag.is_some() && status(&error) == Some(412) => Ok(Reply::Changed),
            Err(error) => self.absent(&error, "reading", object).map(|()| Reply::Missing),
        }
    }

    /// Reads an object of at most `limit` bytes of text, undoing its `Content-Encoding`; none when it is not there.
    ///
    /// # Errors
    /// As [`Bucket::get`]; refuses a larger object.
    pub async fn get_small(&self, object: &str, limit: usize) -> Outcome<Option<Small>> {
        let Some(mut found) = self.get(object).await? else { return Ok(None) };
        let (etag, encoding) = (found.etag.take(), found.encoding.take());
        let mut bytes = Vec::new();
        let mut body = std::pin::pin!(found.into_stream(self.location.shown(object)));
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            if bytes.len() + chunk.len() > limit {
                return Err(Failure::refused(format!("{} is larger than {limit} bytes", self.location.shown(object))));
            }
            bytes.extend_from_slice(&chunk);
        }
        let bytes = decode_content(bytes, encoding.as_deref(), limit).doing(|| self.location.shown(object))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::refused(format!("{}: not UTF-8 text", self.location.shown(object))))?;
        Ok(Some(Small { text, etag }))
    }

    /// Size of an object in bytes; none when it is not there.
    ///
    /// # Errors
    /// Fails with the service's word.
    pub async fn size(&self, object: &str) -> Outcome<Option<u64>> {
        self.count(Kind::Head);
        let request = self.client.head_object().bucket(&self.location.bucket).key(self.location.key(object));
        match request.send().await {
            Ok(output) => Ok(Some(output.content_length.and_then(|size| u64::try_from(size).ok()).unwrap_or(0))),
            Err(error) => self.absent(&error, "looking for", object).map(|()| None),
        }
    }

    /// Passes when the error says that the object is not there.
    fn absent<E: ProvideErrorMetadata + Error + 'static>(&self, error: &Sdk<E>, doing: &str, object: &str) -> Outcome {
        let code = error.code().unwrap_or_default();
        match status(error) {
            Some(404) if code != "NoSuchBucket" => Ok(()),
            // A public bucket would have given its nix-cache-info.
            Some(403) if self.lacks_credentials && !self.readable.load(Ordering::Relaxed) => {
                Err(Failure::failed(format!(
                    "{doing} {}: {NO_CREDENTIALS}, and without them the bucket refuses (403)",
                    self.location.shown(object)
                )))
            }
            // Without permission to list, a key that is not there is forbidden, not absent.
            Some(403) if matches!(code, "" | "AccessDenied" | "Forbidden") => {
                if !self.hinted.swap(true, Ordering::Relaxed) {
                    stage::say(
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

    fn failure<E: ProvideErrorMetadata + Error + 'static>(&self, error: &Sdk<E>, doing: &str, object: &str) -> Failure {
        Failure::failed(format!("{doing} {}: {}", self.location.shown(object), self.cause(error)))
    }

    /// The service's word where it said one, else what happened on the way.
    fn cause<E: ProvideErrorMetadata + Error + 'static>(&self, error: &Sdk<E>) -> String {
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

    /// Whether objects written are checked with a checksum in a header: on AWS, where every part has it, and where
    /// retention demands it.
    fn checksum(&self) -> Option<ChecksumAlgorithm> {
        (self.location.is_aws() || self.storage.needs_checksum()).then_some(ChecksumAlgorithm::Crc32)
    }

    /// Writes an object.
    ///
    /// # Errors
    /// Fails with the service's word; that a write is forbidden is fatal too.
    pub async fn put(&self, object: &str, content_type: &str, body: Bytes) -> Outcome {
        self.put_inner(object, content_type, body, If::Always).await.map(|_| ())
    }

    /// Writes an object unless there is one with that key, where the service can do that, else writes it.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn put_new(&self, object: &str, content_type: &str, body: Bytes) -> Outcome<Written> {
        self.put_inner(object, content_type, body, If::New).await
    }

    /// Writes an object in the place of the one with that entity tag; [`Written::Existed`] when there is another by now.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn put_over(
        &self,
        object: &str,
        content_type: &str,
        body: Bytes,
        etag: Option<&str>,
    ) -> Outcome<Written> {
        self.put_inner(object, content_type, body, etag.map_or(If::Always, If::Unchanged)).await
    }

    async fn put_inner(&self, object: &str, content_type: &str, body: Bytes, when: If<'_>) -> Outcome<Written> {
        if self.dry_run {
            return Ok(Written::Created);
        }
        let mut conflicts = Conflicts::default();
        loop {
            self.count(Kind::Put);
            let conditional = !matches!(when, If::Always) && self.conditional.load(Ordering::Relaxed);
            let request = self
                .storage
                .on_put(self.client.put_object())
                .bucket(&self.location.bucket)
                .key(self.location.key(object))
                .content_type(content_type)
                .set_checksum_algorithm(self.checksum())
                .set_if_none_match((conditional && matches!(when, If::New)).then(|| "*".to_owned()))
                .set_if_match(match when {
                    If::Unchanged(etag) if conditional => Some(etag.to_owned()),
                    _ => None,
                })
                .body(ByteStream::from(body.clone()));
            match request.send().await {
                Ok(_) => return Ok(Written::Created),
                Err(error) if conditional && status(&error) == Some(412) => return Ok(Written::Existed),
                Err(error) if conditional && self.lacks_conditions(&error) => {}
                Err(error) if conditional && conflicts.again(&error).await => {}
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
    pub async fn begin(&self, object: &str, content_type: &str) -> Outcome<Multipart> {
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
            .set_checksum_algorithm(self.checksum());
        let output = request.send().await.map_err(|error| self.failure(&error, "beginning an upload of", object))?;
        let id = output
            .upload_id
            .ok_or_else(|| Failure::failed(format!("beginning an upload of {object}: no id came back")))?;
        Ok(Multipart { key: object.to_owned(), id })
    }

    /// Uploads one part; numbers begin at 1.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn part(&self, upload: &Multipart, number: i32, body: Bytes) -> Outcome<CompletedPart> {
        if self.dry_run {
            return Ok(CompletedPart::builder().part_number(number).build());
        }
        self.count(Kind::Part);
        let request = self
            .client
            .upload_part()
            .bucket(&self.location.bucket)
            .key(self.location.key(&upload.key))
            .upload_id(&upload.id)
            .part_number(number)
            .set_checksum_algorithm(self.checksum())
            .body(ByteStream::from(body));
        let output = request
            .send()
            .await
            .map_err(|error| self.failure(&error, &format!("uploading part {number} of"), &upload.key))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(output.e_tag)
            .set_checksum_crc32(output.checksum_crc32)
            .build())
    }

    /// Makes the parts, in the order of their numbers, one object; with `only_new` unless there is one with that key.
    ///
    /// # Errors
    /// As [`Bucket::put`].
    pub async fn complete(&self, upload: &Multipart, parts: Vec<CompletedPart>, only_new: bool) -> Outcome<Written> {
        if self.dry_run {
            return Ok(Written::Created);
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut conflicts = Conflicts::default();
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
                Ok(output) if output.e_tag.is_some() => return Ok(Written::Created),
                Ok(_) => {
                    return Err(Failure::failed(format!(
                        "completing {}: the answer names no object",
                        self.location.shown(&upload.key)
                    )));
                }
                Err(error) if conditional && status(&error) == Some(412) => {
                    self.abort(upload).await;
                    return Ok(Written::Existed);
                }
                Err(error) if conditional && self.lacks_conditions(&error) => {}
                Err(error) if conditional && conflicts.again(&error).await => {}
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
        let _ = request.send().await;
    }

    /// An upload of that object which somebody began and did not end, with its parts: to be continued. None where there is
    /// none, and where the service cannot tell or does not want to.
    pub async fn unfinished(&self, object: &str) -> Option<(Multipart, HashMap<i32, RemotePart>)> {
        if self.dry_run {
            return None;
        }
        self.count(Kind::ListUploads);
        let key = self.location.key(object);
        let request = self.client.list_multipart_uploads().bucket(&self.location.bucket).prefix(&key);
        let uploads = request.send().await.ok()?.uploads.unwrap_or_default();
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
            let page = request.send().await.ok()?;
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

    /// One page, of at most 1,000 entries, of the keys that begin with `start` and have no further slash; none when
    /// listing is forbidden.
    ///
    /// # Errors
    /// Fails with the service's word.
    pub async fn list(&self, start: &str, token: Option<String>) -> Outcome<Option<Page>> {
        self.count(Kind::List);
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.location.bucket)
            .prefix(self.location.key(start))
            .delimiter("/")
            .set_continuation_token(token);
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) if status(&error) == Some(403) && error.code() == Some("AccessDenied") => return Ok(None),
            Err(error) => return Err(self.failure(&error, "listing", start)),
        };
        let next = output.next_continuation_token.filter(|_| output.is_truncated == Some(true));
        let entries = output.contents.unwrap_or_default().into_iter().filter_map(|entry| {
            let key = entry.key?.strip_prefix(&self.location.prefix)?.to_owned();
            Some(Listed { key, etag: entry.e_tag.unwrap_or_default().trim_matches('"').to_owned() })
        });
        Ok(Some(Page { entries: entries.collect(), next }))
    }
}

/// Another writer of the same key is at it: it or we will win, after a few tries.
#[derive(Default)]
struct Conflicts(u32);

impl Conflicts {
    async fn again<E: ProvideErrorMetadata>(&mut self, error: &Sdk<E>) -> bool {
        if error.code() != Some("ConditionalRequestConflict") || self.0 == ATTEMPTS {
            return false;
        }
        self.0 += 1;
        tokio::time::sleep(BACKOFF * self.0).await;
        true
    }
}

fn status<E>(error: &Sdk<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// An error and what it stems from, on one line, without saying anything twice.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
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
pub fn root_cause(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
