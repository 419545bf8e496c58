//! The library behind `s3-push`: access to remote caches, and uploads that keep a cache valid at all times.
//!
//! | module | responsibility |
//! | --- | --- |
//! | [`remote`] | remote caches of any kind; its `location` needs neither the SDK nor async |
//! | `publish` | what is uploaded, and the order in which it becomes visible |
//! | `collect` | pins, and the deletion of dead paths |
//! | `report`, `refusals` | results on standard output, messages on standard error |
//! | `mode`, `run` | from the command line to one typed mode, and its execution |

pub mod remote;

#[cfg(feature = "client")]
pub mod cli;
#[cfg(feature = "client")]
mod collect;
#[cfg(feature = "client")]
mod mode;
#[cfg(feature = "client")]
pub mod publish;
#[cfg(feature = "client")]
pub mod refusals;
#[cfg(feature = "client")]
pub mod report;
#[cfg(feature = "client")]
mod run;

#[cfg(feature = "client")]
pub use run::{expand_command, run};

#[cfg(feature = "client")]
const TOOL: &str = "s3-push";
