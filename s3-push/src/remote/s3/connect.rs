//! Setting up the S3 client: region, credentials, timeouts, retries, proxies, checksums.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use aws_config::SdkConfig;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::{Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

use super::{Bucket, ObjectOptions, RequestCounts};
use crate::remote::concurrency::AdaptiveLimit;
use crate::remote::location::{DEFAULT_REGION, Location};
use crate::remote::retry::{AttemptObserver, CONNECT_TIMEOUT, INITIAL_BACKOFF, RequestLimits, ThrottleClassifier};

/// Capacity of the bucket's own retry budget. The SDK's default, 500 tokens for the whole process, is used up by
/// one minute of throttling in a bulk transfer.
const RETRY_TOKENS: usize = 10_000;
/// Tokens that a successful request returns to the retry budget.
const RETRY_REWARD: f32 = 5.0;

/// How requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// With credentials from the default chain.
    Signed,
    /// Not signed; the bucket must be public.
    Anonymous,
    /// Signed if the default chain has credentials, otherwise not.
    SignedIfPossible,
}

impl Bucket {
    /// Sets up a client; nothing is requested yet. `tool` is the prefix of messages.
    pub async fn connect(location: Location, access: Access, limits: RequestLimits, tool: &'static str) -> Self {
        let mut sdk_config = load_config(&location, access, limits).await;
        let lacks_credentials =
            access == Access::SignedIfPossible && location.profile.is_none() && !has_credentials(&sdk_config).await;
        if lacks_credentials {
            let mut unsigned = sdk_config.into_builder();
            unsigned.set_credentials_provider(None);
            sdk_config = unsigned.build();
        }
        let (counts, limit) = (RequestCounts::default(), AdaptiveLimit::new(limits.max_in_flight));
        let observer = AttemptObserver { attempts: Arc::clone(&counts.attempts), limit: Arc::clone(&limit) };
        let retry_budget = TokenBucket::builder().capacity(RETRY_TOKENS).success_reward(RETRY_REWARD).build();
        // Bodies are in memory and their payload is signed: many services reject the trailing checksums that are the
        // SDK's default.
        let mut config = Builder::from(&sdk_config)
            .force_path_style(location.path_style())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_partition(RetryPartition::custom(tool).token_bucket(retry_budget).build())
            .interceptor(observer)
            .retry_classifier(ThrottleClassifier);
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
            object_options: ObjectOptions::default(),
            dry_run: false,
            limits,
            limit,
            credentials: sdk_config.credentials_provider().filter(|_| access != Access::Anonymous),
            lacks_credentials,
            is_readable: AtomicBool::new(false),
            was_forbidden: AtomicBool::new(false),
            supports_conditional_writes: AtomicBool::new(true),
            reported_permissions: Mutex::default(),
            counts,
        }
    }

    /// Returns where the credentials come from, for messages; never the credentials themselves.
    pub async fn credential_source(&self) -> &'static str {
        let Some(provider) = &self.credentials else { return "none, requests are not signed" };
        match provider.provide_credentials().await {
            Ok(credentials) => {
                let features = credentials.get_property::<Vec<AwsCredentialFeature>>();
                features.and_then(|features| features.iter().find_map(source_name)).unwrap_or("a provider of the SDK")
            }
            Err(_) => "none found",
        }
    }
}

async fn load_config(location: &Location, access: Access, limits: RequestLimits) -> SdkConfig {
    let idle = limits.idle_timeout;
    let retries = RetryConfig::standard().with_max_attempts(limits.max_attempts).with_initial_backoff(INITIAL_BACKOFF);
    let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .http_client(http_client())
        .region(region(location))
        .retry_config(retries)
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(idle).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(idle).build());
    if let Some(profile) = &location.profile {
        loader = loader.profile_name(profile);
    }
    if access == Access::Anonymous {
        loader = loader.no_credentials();
    }
    loader.load().await
}

/// Returns an HTTP client that honors the proxy variables, which the SDK ignores by default.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_with_connector_fn(|settings, _| {
        let tls = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let mut connector = tls.proxy_config(ProxyConfig::from_env());
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

/// Returns whether the provider chain finds credentials. Any other error is left to the first request.
async fn has_credentials(config: &SdkConfig) -> bool {
    let Some(provider) = config.credentials_provider() else { return false };
    !matches!(provider.provide_credentials().await, Err(CredentialsError::CredentialsNotLoaded(_)))
}

/// Returns the name of a source of credentials, or none for features that are not sources.
fn source_name(feature: &AwsCredentialFeature) -> Option<&'static str> {
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
