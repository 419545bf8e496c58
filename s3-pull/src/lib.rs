//! Reading a binary cache and trusting nothing in it; the library behind `s3-pull`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`source`] | `s3://`, `http(s)://` and `file://` caches |
//! | [`body`] | objects as they arrive: ranges, and going on where a body broke off |
//! | [`closure`] | fetching and checking narinfos |
//! | [`fetch`] | fetching and checking a NAR |
//! | [`staging`] | temporaries, and the rename that makes a path visible |
//! | [`unpack`] | paths below a root |
//! | [`case_hack`] | names that a file system takes for one |
//! | [`report`] | what a pull tells |
//! | [`emit`] | streams on standard output |

pub mod body;
pub mod case_hack;
pub mod cli;
pub mod closure;
pub mod emit;
pub mod fetch;
mod pull;
pub mod report;
pub mod source;
pub mod staging;
pub mod unpack;

pub use pull::run;

const TOOL: &str = "s3-pull";
