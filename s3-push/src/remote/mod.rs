//! Remote caches: a bucket (`s3`), a web server (`http`) or a directory (`file`). No other code connects to one.
//!
//! `Remote` reads any of them; `s3::Bucket` also writes. Permits of the cache's concurrency limit, retries, timeouts,
//! decoding of `Content-Encoding` and the classification of errors are inside each call, so that no caller can forget
//! them. The callers decide what is read and why.
//!
//! | module | responsibility |
//! | --- | --- |
//! | `reader` | `Remote`, a cache of any kind, for reading |
//! | `location` | the URL of a bucket; needs neither the SDK nor async |
//! | `s3` | requests to S3: connect, read, write, delete, multipart uploads, errors |
//! | `http`, `netrc` | requests to web servers, and their user names and passwords |
//! | `file` | directories |
//! | `transfer`, `chunks` | bodies: ranges, resuming, and passing them to threads that block |
//! | `listing` | the store paths of a bucket, and listing it in parallel |
//! | `pins`, `liveness` | the paths that are pinned, and those that are dead |
//! | `etag` | comparing bytes with an entity tag |
//! | `known_texts`, `text_file` | narinfos of an earlier run, which need not be read again; texts in an unlinked file |
//! | `cli`, `option_values` | the options of commands on a bucket; byte sizes and durations in options |
//! | `retry`, `concurrency` | retries with backoff, and the adaptive limit on requests in flight |
//! | `first_response` | the note that a server does not respond |
//! | `error_chain`, `hints` | the text of errors of other libraries, and hints for wrong URLs |
//! | `progress`, `terminal` | verbosity and the progress bar of the tools that use a remote cache |
//! | `interrupts` | SIGINT and SIGTERM, which end a push or a pull |

#[cfg(feature = "client")]
pub mod chunks;
#[cfg(feature = "client")]
pub mod cli;
#[cfg(feature = "client")]
mod concurrency;
#[cfg(feature = "client")]
mod error_chain;
#[cfg(feature = "client")]
pub mod etag;
#[cfg(feature = "client")]
mod file;
#[cfg(feature = "client")]
mod first_response;
#[cfg(feature = "client")]
mod hints;
#[cfg(feature = "client")]
mod http;
#[cfg(feature = "client")]
pub mod interrupts;
#[cfg(feature = "client")]
pub mod known_texts;
#[cfg(feature = "client")]
pub mod listing;
#[cfg(feature = "client")]
pub mod liveness;
pub mod location;
#[cfg(feature = "client")]
mod netrc;
#[cfg(feature = "client")]
pub mod option_values;
#[cfg(feature = "client")]
pub mod pins;
#[cfg(feature = "client")]
pub mod progress;
#[cfg(feature = "client")]
mod reader;
#[cfg(feature = "client")]
pub mod retry;
#[cfg(feature = "client")]
pub mod s3;
#[cfg(feature = "client")]
mod terminal;
#[cfg(feature = "client")]
mod text_file;
#[cfg(feature = "client")]
pub mod transfer;

/// Starts the runtime on which requests are made.
///
/// # Errors
/// Fails if the system starts no more threads.
#[cfg(feature = "client")]
pub fn start_runtime() -> nar_pack::error::Result<tokio::runtime::Runtime> {
    let started = tokio::runtime::Runtime::new();
    started.map_err(|error| nar_pack::error::Error::failed(format!("cannot start the async runtime: {error}")))
}

#[cfg(feature = "client")]
pub use reader::{Remote, RemoteOptions, TextObject};
