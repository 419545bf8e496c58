//! What s3-push writes to a bucket.

mod continuation;
mod hostile;
mod output;
mod refusals;
mod storage;
mod upstream;
