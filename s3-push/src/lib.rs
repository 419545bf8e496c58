//! Where a bucket is, the S3 client, and uploads that never leave a cache broken; the library behind `s3-push`.

pub mod location;
