//! Reading a binary cache and trusting nothing in it; the library behind `s3-pull`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`closure`] | fetching and checking narinfos |
//! | [`fetch`] | fetching and checking a NAR |
//! | [`staging`] | temporaries, and the rename that makes a path visible |
//! | [`unpack`] | paths below a root |
//! | [`report`] | what a pull tells |
//! | [`streams`] | streams on standard output |

pub mod cli;
pub mod closure;
pub mod fetch;
pub mod report;
mod run;
pub mod staging;
pub mod streams;
pub mod unpack;

pub use run::run;

const TOOL: &str = "s3-pull";
