//! A remote cache of any kind: where it is, and how it is asked.

#[cfg(feature = "client")]
pub mod chunks;
#[cfg(feature = "client")]
pub mod concurrency;
#[cfg(feature = "client")]
pub mod http;
pub mod location;
#[cfg(feature = "client")]
pub mod netrc;
#[cfg(feature = "client")]
pub mod permission;
#[cfg(feature = "client")]
pub mod retry;
#[cfg(feature = "client")]
pub mod s3;
