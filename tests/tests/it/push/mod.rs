//! What s3-push writes to a bucket.

mod hostile;
mod object_options;
mod output;
mod refusals;
mod resume;
mod upstream;
