//! Credentials: the providers of the SDK's default chain, in its order. The instance metadata service is asked on every
//! host without other credentials, and where it does not exist, a proxy or a firewall may answer in its place or
//! nothing may. So, unlike in the SDK, it has two seconds in all, and its failure means that it has no credentials. The
//! whole chain is limited too: the program of a `credential_process` may never end.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::default_provider::use_dual_stack::use_dual_stack_provider;
use aws_config::default_provider::use_fips::use_fips_provider;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::client::error::{ImdsError, TokenError};
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result as ProviderResult, future};
use aws_sdk_s3::error::SdkError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use nar_pack::sync::lock;
use tokio::time::timeout;

use super::Bucket;
use crate::remote::error_chain::sources;
use crate::remote::first_response::FirstResponse;

/// Time that the instance metadata service has for all its requests.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often credentials that were found once may fail to arrive in time when they are refreshed.
const MAX_SLOW_REFRESHES: u32 = 3;

/// Why the instance metadata service failed, unless it cannot be reached: it exists on few hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct InstanceError(Arc<Mutex<Option<String>>>);

impl InstanceError {
    /// Returns the reason, if the service has failed.
    pub fn get(&self) -> Option<String> {
        lock(&self.0).clone()
    }

    fn set(&self, reason: Option<String>) {
        *lock(&self.0) = reason;
    }
}

/// The credentials of the instance, from its metadata service.
#[derive(Debug)]
struct InstanceCredentials {
    service: ImdsCredentialsProvider,
    failure: InstanceError,
}

impl InstanceCredentials {
    async fn credentials(&self) -> ProviderResult {
        let Ok(result) = timeout(INSTANCE_TIMEOUT, self.service.provide_credentials()).await else {
            let seconds = INSTANCE_TIMEOUT.as_secs();
            self.failure.set(Some(format!("no credentials within {seconds} seconds")));
            // Those of an earlier response, if there was one.
            let earlier = self.service.fallback_on_interrupt();
            return earlier.ok_or_else(|| CredentialsError::not_loaded("the instance metadata service timed out"));
        };
        result.map_err(|error| {
            if !matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
                self.failure.set(Some(describe(&error)));
            }
            CredentialsError::not_loaded(error)
        })
    }
}

impl ProvideCredentials for InstanceCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.service.fallback_on_interrupt()
    }
}

/// Credentials of a chain of providers, which has a limited time.
#[derive(Debug)]
pub(super) struct LimitedCredentials {
    chain: CredentialsProviderChain,
    limit: Duration,
    first_response: Arc<FirstResponse>,
    /// How often the chain may still use up its time. Every attempt at every request would wait again.
    attempts_left: AtomicU32,
}

impl LimitedCredentials {
    /// Limits the time of `chain` each time it is asked. A note of `first_response` says what is waited for.
    pub fn new(chain: CredentialsProviderChain, limit: Duration, first_response: Arc<FirstResponse>) -> Self {
        Self { chain, limit, first_response, attempts_left: AtomicU32::new(1) }
    }

    async fn credentials(&self) -> ProviderResult {
        let timed_out = || CredentialsError::provider_timed_out(self.limit);
        if self.attempts_left.load(Ordering::Relaxed) == 0 {
            return Err(timed_out());
        }
        let credentials = timeout(self.limit, self.chain.provide_credentials());
        let Ok(result) = self.first_response.watch_credentials(credentials).await else {
            let left = self.attempts_left.load(Ordering::Relaxed);
            self.attempts_left.store(left.saturating_sub(1), Ordering::Relaxed);
            return self.chain.fallback_on_interrupt().ok_or_else(timed_out);
        };
        if result.is_ok() {
            self.attempts_left.store(MAX_SLOW_REFRESHES, Ordering::Relaxed);
        }
        result
    }
}

impl ProvideCredentials for LimitedCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.chain.fallback_on_interrupt()
    }
}

/// Returns the status of the response by which the instance metadata service failed, otherwise the text of the error.
fn describe(error: &CredentialsError) -> String {
    let status = sources(error).find_map(|source| {
        if let Some(ImdsError::ErrorResponse(error)) = source.downcast_ref() {
            return Some(error.response().status().as_u16());
        }
        let token: &SdkError<TokenError, HttpResponse> = source.downcast_ref()?;
        token.raw_response().map(|response| response.status().as_u16())
    });
    match status {
        Some(200) => "the response is not one of the instance metadata service".to_owned(),
        Some(status) => format!("HTTP {status}"),
        None => sources(error).last().map_or_else(|| error.to_string(), ToString::to_string),
    }
}

/// Returns the chain of providers. A profile that the bucket's URL names is the only one, as in Nix: variables of the
/// environment must not replace it.
pub(super) async fn provider_chain(
    config: ProviderConfig,
    profile: Option<&str>,
    failure: InstanceError,
) -> CredentialsProviderChain {
    let (use_fips, use_dual_stack) = (use_fips_provider(&config).await, use_dual_stack_provider(&config).await);
    let config = config.with_use_fips(use_fips).with_use_dual_stack(use_dual_stack);
    let profiles = ProfileFileCredentialsProvider::builder().configure(&config);
    if let Some(name) = profile {
        return CredentialsProviderChain::first_try("profile", profiles.profile_name(name).build());
    }
    let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(&config).build();
    let container = EcsCredentialsProvider::builder().configure(&config).build();
    let service = ImdsCredentialsProvider::builder().configure(&config).build();
    CredentialsProviderChain::first_try("environment", EnvironmentVariableCredentialsProvider::new())
        .or_else("profile", profiles.build())
        .or_else("web identity", web_identity)
        .or_else("container", container)
        .or_else("instance", InstanceCredentials { service, failure })
}

/// Returns whether the provider finds credentials. Any other error is left to the first request.
pub(super) async fn are_found(provider: &impl ProvideCredentials) -> bool {
    !matches!(provider.provide_credentials().await, Err(CredentialsError::CredentialsNotLoaded(_)))
}

/// Returns whether an error of a request is one of a provider of credentials.
pub(super) fn is_credentials_error(error: &(dyn StdError + 'static)) -> bool {
    sources(error).any(<dyn StdError>::is::<CredentialsError>)
}

/// Returns whether an error of a request is a provider of credentials that has used up its time.
pub(super) fn is_credentials_timeout(error: &(dyn StdError + 'static)) -> bool {
    sources(error).any(|source| matches!(source.downcast_ref(), Some(CredentialsError::ProviderTimedOut(_))))
}

impl Bucket {
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

    /// Returns the message for a host without credentials.
    pub(super) fn no_credentials(&self) -> String {
        let failure = self.instance_error.get();
        let failure = failure.map_or_else(String::new, |reason| format!(" (instance metadata service: {reason})"));
        match &self.location.profile {
            Some(profile) => format!("the AWS profile {profile:?} has no credentials"),
            None => format!(
                "no AWS credentials found in the environment, profile, SSO, web identity, container or \
                 instance{failure}"
            ),
        }
    }
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
