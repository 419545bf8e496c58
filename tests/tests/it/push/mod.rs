//! What s3-push writes to a bucket.

mod continuation;
mod hostile;
mod storage;
mod upstream;
