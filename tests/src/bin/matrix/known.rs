//! Services and servers that cannot run here, from published documentation and issue reports.

use cache_tests::service_profiles::Service;

/// What is known about a service.
pub struct Known {
    /// Its name.
    pub service: &'static str,
    /// How it differs from S3.
    pub differences: &'static str,
    /// What our tools do about it.
    pub behavior: &'static str,
    /// Where that is documented or reported.
    pub sources: &'static str,
}

impl Known {
    /// Returns whether a proxy emulates the service in the tests.
    pub fn is_emulated(&self) -> bool {
        Service::ALL.iter().any(|service| service.name() == self.service)
    }
}

/// All services, sorted by name.
pub static KNOWN: [Known; 12] = [
    Known {
        service: "Amazon S3",
        differences: "the reference; conflicting conditional writes get 409 ConditionalRequestConflict",
        behavior: "every body has a checksum in a header; a 409 is retried",
        sources: "[conditional writes](https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html)",
    },
    Known {
        service: "Backblaze B2",
        differences: "400 for the headers `x-amz-checksum-*` and `x-amz-sdk-checksum-algorithm`",
        behavior: "checksum headers are sent to Amazon S3 only, and with object lock, which requires one",
        sources: "[S3-compatible API](https://www.backblaze.com/docs/cloud-storage-s3-compatible-api), \
                  [report](https://github.com/home-assistant/core/issues/143995)",
    },
    Known {
        service: "Ceph RGW",
        differences: "had conditional writes before S3, as an extension; how complete they are depends on the release; the \
                      radosgw of Debian needs a Ceph cluster, with monitors and object storage daemons",
        behavior: "a 501 is remembered, and writes continue without a condition",
        sources: "[s3-tests](https://github.com/ceph/s3-tests/issues/583)",
    },
    Known {
        service: "Cloudflare R2",
        differences: "all parts of an upload but the last must have one size, and the last must not be larger: 400 InvalidPart",
        behavior: "all parts of an upload have one size",
        sources: "[multipart upload](https://developers.cloudflare.com/r2/objects/multipart-objects), \
                  [report](https://github.com/apache/opendal/issues/2904)",
    },
    Known {
        service: "DigitalOcean Spaces",
        differences: "a documented part of the API of S3; bucket policies can be set through the API only",
        behavior: "nothing is needed",
        sources: "[S3 compatibility](https://docs.digitalocean.com/products/spaces/reference/s3-compatibility/)",
    },
    Known {
        service: "Hetzner Object Storage",
        differences: "bodies in the encoding aws-chunked are reported to fail: 400 XAmzContentSHA256Mismatch",
        behavior: "bodies are sent as they are, with a signed hash (parts with object lock: a signed checksum), never \
                   as aws-chunked",
        sources: "[supported actions](https://docs.hetzner.com/storage/object-storage/supported-actions/), \
                  [report](https://github.com/home-assistant/core/issues/144015)",
    },
    Known {
        service: "OpenStack Swift, s3api",
        differences: "multipart uploads and their listings are supported, bucket policies are not; conditional writes are not \
                      mentioned; s3api is a filter of the proxy of a Swift cluster, with account, container and object \
                      servers and rings",
        behavior: "a 501 is remembered, and an ignored condition is found out, after which narinfos are read back",
        sources: "[S3 comparison](https://docs.openstack.org/swift/ussuri/s3_compat.html)",
    },
    Known {
        service: "Oracle Cloud Object Storage",
        differences: "501 for bodies in the encoding aws-chunked, and thus for trailers; DeleteObjects requires Content-MD5, \
                      a SHA-256 or a CRC-32C",
        behavior: "bodies are sent as they are; DeleteObjects has a Content-MD5",
        sources: "[report](https://github.com/activepieces/activepieces/pull/14115), \
                  [report](https://github.com/treeverse/lakeFS/issues/2527)",
    },
    Known {
        service: "OVHcloud",
        differences: "STREAMING-UNSIGNED-PAYLOAD-TRAILER and `x-amz-sdk-checksum-algorithm` were not supported in 2025",
        behavior: "neither is sent to servers other than Amazon S3",
        sources: "[roadmap](https://github.com/ovh/public-cloud-roadmap/issues/781)",
    },
    Known {
        service: "RustFS",
        differences: "1.0.0-beta.1: 500 for ListParts of an upload without parts",
        behavior: "an upload whose parts cannot be listed is not continued; the push creates another one",
        sources: "[report](https://github.com/rustfs/rustfs/issues/2760)",
    },
    Known {
        service: "SeaweedFS",
        differences: "to 4.44: 412 instead of 404 for a conditional read of a missing key; to 3.96: If-None-Match on PUT is ignored",
        behavior: "reads are conditional only for an object that was read before",
        sources: "[412](https://github.com/seaweedfs/seaweedfs/issues/10984), \
                  [If-None-Match](https://github.com/seaweedfs/seaweedfs/issues/7153)",
    },
    Known {
        service: "Wasabi",
        differences: "its documentation does not mention conditional writes; parts with a checksum that was not announced \
                      for the upload are refused",
        behavior: "a 501 is remembered, and writes continue without a condition; parts have no checksums",
        sources: "[documentation](https://docs.wasabi.com/), \
                  [report](https://github.com/thephpleague/flysystem/issues/1850)",
    },
];

#[cfg(test)]
mod tests {
    use super::{KNOWN, Service};

    #[test]
    fn every_service_that_is_emulated_has_a_row() {
        for service in Service::ALL {
            assert!(KNOWN.iter().any(|known| known.service == service.name()), "{service}");
        }
        assert!(KNOWN.is_sorted_by_key(|known| known.service.to_lowercase()));
    }
}
