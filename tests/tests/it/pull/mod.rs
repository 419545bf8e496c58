//! What s3-pull reads from a cache.

mod lying_server;
mod sources;
mod streams;
mod transport;
mod verification;
