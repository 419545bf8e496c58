//! Where a bucket is, the S3 client, and uploads that never leave a cache broken; the library behind `s3-push`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`location`] | `s3://` URLs; needs neither the SDK nor async |
//! | `client` | the calls of S3 that a cache needs |
//! | `existing` | what the cache has |
//! | `permission` | what each request takes |
//! | `intake` | standard input to events |
//! | `publish` | the order in which objects become visible |
//! | `storage` | what operators ask of objects |
//! | `upload` | whole and multipart uploads under one memory budget |
//! | `chunks` | bodies that cross from one thread to another |
//! | `pace`, `patience` | how many requests are in flight, and when one is repeated |
//! | `http`, `netrc` | caches behind `https://` URLs, for reading |
//! | `upstream` | what other caches serve |
//! | `report` | what a push tells |

pub mod location;

#[cfg(feature = "client")]
pub mod chunks;
#[cfg(feature = "client")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod existing;
#[cfg(feature = "client")]
pub mod http;
#[cfg(feature = "client")]
pub mod intake;
#[cfg(feature = "client")]
pub mod netrc;
#[cfg(feature = "client")]
pub mod pace;
#[cfg(feature = "client")]
pub mod patience;
#[cfg(feature = "client")]
pub mod permission;
#[cfg(feature = "client")]
pub mod publish;
#[cfg(feature = "client")]
mod push;
#[cfg(feature = "client")]
pub mod report;
#[cfg(feature = "client")]
pub mod storage;
#[cfg(feature = "client")]
pub mod upload;
#[cfg(feature = "client")]
pub mod upstream;

#[cfg(feature = "client")]
pub use push::run;

#[cfg(feature = "client")]
const TOOL: &str = "s3-push";
