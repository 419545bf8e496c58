//! s3-pull: caches and protocols that it reads, its output, and what it refuses.

mod interrupted;
mod lying_server;
mod mirror;
mod pinned;
mod root;
mod sources;
mod streams;
mod transport;
mod verification;
