//! Buckets in another region than the one that requests are signed for. The response names the right region. Reads are
//! repeated in it; writes fail with its name, so that nothing is written to a bucket that the user did not mean.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Region;
use aws_sdk_s3::error::ProvideErrorMetadata;
use nar_pack::process;

use super::errors::{element, status};
use super::{Bucket, RequestKind, Sdk};
use crate::remote::concurrency::Permit;
use crate::remote::location::{Location, check_region};

impl Bucket {
    /// Sends a read, and once more if the bucket is in another region than the request is signed for. Returns the permit
    /// of the request; see [`Bucket::send_keeping_permit`].
    pub(super) async fn send_read<T, E, F>(
        &self,
        kind: RequestKind,
        request: impl Fn(&Client) -> F,
    ) -> (Result<T, Sdk<E>>, Permit)
    where
        T: Send,
        E: ProvideErrorMetadata + Send,
        F: Future<Output = Result<T, Sdk<E>>> + Send,
    {
        if let Some(client) = self.redirected.get() {
            return self.send_keeping_permit(kind, request(client)).await;
        }
        let (result, permit) = self.send_keeping_permit(kind, request(&self.client)).await;
        let Some(region) = result.as_ref().err().and_then(|error| self.other_region(error)) else {
            return (result, permit);
        };
        drop((result, permit));
        let client = self.redirected.get_or_init(|| self.redirect(region));
        self.send_keeping_permit(kind, request(client)).await
    }

    /// Returns the region of the bucket, if the response names another one than the client's.
    pub(super) fn other_region<E: ProvideErrorMetadata>(&self, error: &Sdk<E>) -> Option<String> {
        region_of_bucket(error).filter(|region| region != self.region())
    }

    /// Returns the region that writes are signed for.
    pub(super) fn region(&self) -> &str {
        self.client.config().region().map_or("", |region| region.as_ref())
    }

    /// Returns a client for another region.
    fn redirect(&self, region: String) -> Client {
        let (url, expected) = (self.display_url(""), self.region());
        process::print_message(
            self.tool,
            format!(
                "warning: {url}: the bucket is in the region {region:?}, not in {expected:?}; add region={region} to the \
                 parameters of its URL"
            ),
        );
        let mut config = self.client.config().to_builder().region(Region::new(region.clone()));
        if self.location.endpoint.is_none() {
            config.set_endpoint_url(Location { region: Some(region), ..self.location.clone() }.endpoint_url());
        }
        Client::from_conf(config.build())
    }
}

/// Returns the region that the response to a request for the wrong one names: in a header, which AWS and MinIO send also
/// without a body, or in the body (Amazon S3 API reference, "Error responses").
fn region_of_bucket<E: ProvideErrorMetadata>(error: &Sdk<E>) -> Option<String> {
    if !matches!(status(error), Some(301 | 307 | 400)) {
        return None;
    }
    let header = error.raw_response()?.headers().get("x-amz-bucket-region");
    let is_malformed = error.code() == Some("AuthorizationHeaderMalformed");
    let in_body = || element(error, "Region").filter(|_| is_malformed);
    header.or_else(in_body).filter(|region| check_region(region).is_ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_cannot_change_the_host_or_the_message() {
        assert!(["eu-west-2", "garage", "RegionOne"].iter().all(|region| check_region(region).is_ok()));
        for text in ["", "-eu", "evil.example", "eu/west", "eu west", "eu\u{1b}[0m", &"a".repeat(64)] {
            assert!(check_region(text).is_err(), "{text:?}");
        }
    }
}
