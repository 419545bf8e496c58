//! The nix.conf lines that make a client use a cache, and merging them into a file.
//!
//! The lines are written at the end of the file, after everything that the file includes, between two comments that name
//! the cache, so that they can be found and removed again. No other byte of the file changes. `cache_sign::nix_conf`
//! reads the file; no published crate edits nix.conf without changing the rest of the file.
//!
//! | module | responsibility |
//! | --- | --- |
//! | [`client`] | [`ClientConfig`]: the lines for one cache, and whether settings contain them |
//! | [`merge`] | adds the lines to the text of a nix.conf, and removes them |
//! | [`mod@file`] | reads and atomically replaces the file, under a lock |
//! | [`url`] | the URL of a cache: identity, plain HTTPS form, portable form, and what must not be in nix.conf |

pub mod client;
mod file;
mod merge;
pub(crate) mod url;

pub use client::{ClientConfig, InspectedConf, UrlForm};
