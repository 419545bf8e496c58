//! Setting up the S3 client: region, credentials, timeouts, retries, proxies, checksums.

use std::env;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::{
    Builder, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use nar_pack::error::{Error, Result};
use tokio::sync::OnceCell;

use super::complete_response::CompleteXmlResponses;
use super::credentials::{InstanceError, LimitedCredentials, are_found, provider_chain};
use super::upload_timeouts::UploadTimeouts;
use super::{Bucket, ObjectOptions, RequestCounts};
use crate::remote::concurrency::AdaptiveLimit;
use crate::remote::first_response::FirstResponse;
use crate::remote::location::{DEFAULT_REGION, Location};
use crate::remote::retry::{
    AttemptObserver, INITIAL_BACKOFF, ImplausibleDateFilter, PermanentConnectionError, RequestLimits,
    ThrottleClassifier,
};

/// Capacity of the bucket's own retry budget. The SDK's default, 500 tokens for the whole process, is used up by
/// one minute of throttling in a bulk transfer.
const RETRY_TOKENS: usize = 10_000;
/// Tokens that a successful request returns to the retry budget.
const RETRY_REWARD: f32 = 5.0;

/// Whether the host has trusted certificates. The SDK panics if not, also if it needs none for plain HTTP.
static HAS_ROOTS: LazyLock<bool> = LazyLock::new(|| !rustls_native_certs::load_native_certs().certs.is_empty());

/// The environment variables that become part of the header of a signature.
const SIGNING_VARIABLES: [&str; 4] = ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"];

/// How requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// With credentials from the default chain.
    Signed,
    /// Not signed; the bucket must be public.
    Anonymous,
    /// Signed if the default chain has credentials, otherwise not.
    SignedIfPossible {
        /// Whether the tool has `--no-sign-request`, which hints then name.
        has_opt_out: bool,
    },
}

impl Bucket {
    /// Sets up a client; nothing is requested yet. `tool` is the prefix of messages.
    ///
    /// # Errors
    /// Fails if an environment variable for requests has a value that cannot be part of a header.
    pub async fn connect(
        location: Location,
        access: Access,
        limits: RequestLimits,
        tool: &'static str,
    ) -> Result<Self> {
        if access != Access::Anonymous {
            SIGNING_VARIABLES.into_iter().try_for_each(require_header_value)?;
        }
        let instance_error = InstanceError::default();
        let server = location.endpoint_url().unwrap_or_else(|| "AWS".to_owned());
        let first_response = Arc::new(FirstResponse::new(tool, server, limits.max_attempts, limits.is_quiet));
        let mut sdk_config =
            load_config(&location, access, limits, instance_error.clone(), Arc::clone(&first_response)).await;
        let is_optional = matches!(access, Access::SignedIfPossible { .. }) && location.profile.is_none();
        let lacks_credentials = match sdk_config.credentials_provider() {
            Some(provider) if is_optional => !are_found(&provider).await,
            _ => false,
        };
        if lacks_credentials {
            let mut unsigned = sdk_config.into_builder();
            unsigned.set_credentials_provider(None);
            sdk_config = unsigned.build();
        }
        let (counts, limit) = (RequestCounts::default(), AdaptiveLimit::new(limits.max_in_flight));
        let observer = AttemptObserver {
            attempts: Arc::clone(&counts.attempts),
            limit: Arc::clone(&limit),
            first_response: Arc::clone(&first_response),
        };
        let retry_budget = TokenBucket::builder().capacity(RETRY_TOKENS).success_reward(RETRY_REWARD).build();
        // Bodies are in memory, and their hash or checksum is signed: many services reject the trailing checksums that are the
        // SDK's default.
        let mut config = Builder::from(&sdk_config)
            .force_path_style(location.path_style())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_partition(RetryPartition::custom(tool).token_bucket(retry_budget).build())
            .interceptor(observer)
            .interceptor(ImplausibleDateFilter)
            .interceptor(CompleteXmlResponses)
            .retry_classifier(ThrottleClassifier)
            .retry_classifier(PermanentConnectionError);
        if let Some(url) = location.endpoint_url() {
            config = config.endpoint_url(url);
        }
        if lacks_credentials {
            config = config.allow_no_auth();
        }
        Ok(Self {
            client: Client::from_conf(config.build()),
            redirected: OnceLock::new(),
            location,
            tool,
            object_options: ObjectOptions::default(),
            dry_run: false,
            limits,
            upload_timeouts: UploadTimeouts::new(limits),
            limit,
            first_response,
            can_opt_out: access == Access::SignedIfPossible { has_opt_out: true },
            instance_error,
            credentials: sdk_config.credentials_provider().filter(|_| access != Access::Anonymous),
            lacks_credentials,
            is_readable: AtomicBool::new(false),
            was_forbidden: AtomicBool::new(false),
            supports_conditional_writes: AtomicBool::new(true),
            must_sign_parts: AtomicBool::new(false),
            supports_delete_objects: AtomicBool::new(true),
            applies_conditions: OnceCell::new(),
            reported_permissions: Mutex::default(),
            counts,
        })
    }
}

/// Refuses a control character in an environment variable: the SDK panics when it signs a request with it. A secret in a
/// file often ends with a line end.
fn require_header_value(variable: &str) -> Result {
    let is_invalid = env::var(variable).is_ok_and(|value| value.contains(|c: char| c.is_ascii_control()));
    if !is_invalid {
        return Ok(());
    }
    let error = Error::failed(format!("the value of {variable} contains a line end or another control character"));
    Err(error.with_hint(format!("set {variable} to the value without it, such as {variable}=$(cat FILE)")))
}

async fn load_config(
    location: &Location,
    access: Access,
    limits: RequestLimits,
    instance_error: InstanceError,
    first_response: Arc<FirstResponse>,
) -> SdkConfig {
    let idle = limits.idle_timeout;
    let retries = RetryConfig::standard().with_max_attempts(limits.max_attempts).with_initial_backoff(INITIAL_BACKOFF);
    let timeouts = TimeoutConfig::builder().connect_timeout(limits.connect_timeout).read_timeout(idle).build();
    let region = region(location).region().await;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client())
        .region(region.clone())
        .retry_config(retries.clone())
        .timeout_config(timeouts.clone())
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(idle).build());
    let profile = location.profile.as_deref();
    if let Some(profile) = profile {
        loader = loader.profile_name(profile);
    }
    loader = match access {
        Access::Anonymous => loader.no_credentials(),
        Access::Signed | Access::SignedIfPossible { .. } => {
            let config = ProviderConfig::without_region()
                .with_behavior_version(Some(BehaviorVersion::latest()))
                .with_http_client(http_client())
                .with_region(region)
                .with_retry_config(retries)
                .with_timeout_config(timeouts);
            let chain = provider_chain(config, profile, instance_error).await;
            // The SDK's own limit, which depends on that of connections, must not be reached before ours.
            let cache = IdentityCache::lazy().load_timeout(2 * idle).build();
            let credentials = LimitedCredentials::new(chain, idle, first_response);
            loader.identity_cache(cache).credentials_provider(credentials)
        }
    };
    loader.load().await
}

/// Returns an HTTP client that honors the proxy variables, which the SDK ignores by default.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_with_connector_fn(|settings, _| {
        let tls = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let mut connector = tls.proxy_config(ProxyConfig::from_env());
        if !*HAS_ROOTS && let Ok(context) = TlsContext::builder().with_trust_store(TrustStore::empty()).build() {
            connector.set_tls_context(context);
        }
        connector.set_connector_settings(settings.cloned());
        connector.build()
    })
}

/// Returns the region of the URL, the environment or the profile. The SDK's default chain also asks the EC2 metadata
/// service, which takes a second to time out elsewhere.
fn region(location: &Location) -> RegionProviderChain {
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &location.profile {
        profile = profile.profile_name(name);
    }
    RegionProviderChain::first_try(location.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build())
        .or_else(Region::new(DEFAULT_REGION))
}
