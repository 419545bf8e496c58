//! Where a bucket is, the S3 client, and uploads that never leave a cache broken; the library behind `s3-push`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`remote`] | a remote cache of any kind; its `location` needs neither the SDK nor async |
//! | `publish` | what is uploaded, and the order in which it becomes visible |
//! | `report` | results on standard output, messages on standard error |

pub mod remote;

#[cfg(feature = "client")]
pub mod cli;
#[cfg(feature = "client")]
pub mod publish;
#[cfg(feature = "client")]
pub mod report;
#[cfg(feature = "client")]
mod run;

#[cfg(feature = "client")]
pub use run::run;

#[cfg(feature = "client")]
const TOOL: &str = "s3-push";
