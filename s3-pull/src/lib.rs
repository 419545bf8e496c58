//! Fetches, verifies and unpacks store paths from binary caches; the library behind `s3-pull`.
//!
//! Nothing that a cache sends is trusted: a narinfo is used only after its signatures have been checked, and a NAR
//! becomes visible only after its hashes have been checked. Requests, retries and ranges belong to `s3_push::remote`.
//!
//! | module | responsibility |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | `commands` | `pins`, `dead`, `check` and `stats`, and the commands that stand for a flag |
//! | [`mode`] | the command line as a typed request |
//! | [`sources`] | the caches in order of priority, and the lookup and verification of a narinfo |
//! | [`closure`] | the walk through a closure |
//! | [`fetch`] | the download and verification of one NAR |
//! | [`unpack`] | paths under a root: the order in which they are published, and the download of each |
//! | [`partial_nar`] | the files in which interrupted downloads are continued |
//! | [`staging`] | temporary directories, and the rename that publishes a path |
//! | [`streams`] | NAR, export stream and cache archive on standard output |
//! | [`extras`] | the other objects of a cache archive |
//! | [`cat`] | one file of a path on standard output |
//! | [`refusals`] | errors of paths, counted by their cause |
//! | [`report`] | the result of each path, and the summary |

pub mod cat;
pub mod cli;
pub mod closure;
mod commands;
pub mod extras;
pub mod fetch;
pub mod mode;
pub mod partial_nar;
pub mod path_writer;
mod refusals;
pub mod report;
mod run;
pub mod sources;
pub mod staging;
pub mod streams;
pub mod unpack;

pub use commands::expand_command;
pub use run::run;

const TOOL: &str = "s3-pull";
