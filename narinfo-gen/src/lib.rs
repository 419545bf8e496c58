//! Hashes, narinfos, compression and cache archives; the library of `narinfo-gen`.
//!
//! | module | responsibility |
//! | --- | --- |
//! | [`cli`], [`run`] | the command line, and what it does |
//! | [`narinfo_builder`] | the narinfos of a NAR or an export stream |
//! | [`compress_nar`] | compressing and hashing NARs in parallel |
//! | [`compression`] | compression methods, encoders and decoders |
//! | [`extras`] | listings, debug information links, build logs, build trace |
//! | [`archive`] | cache archives, and the kinds of objects in a cache |
//! | [`narinfo`] | parsing and writing narinfos |
//! | [`cache_info`] | `nix-cache-info` |
//! | [`content_address`] | content addresses |
//! | [`hash`] | SHA-256 in the formats of Nix |
//! | [`verify_nar`] | verifying a compressed NAR against its narinfo |
//! | [`stream`] | recognizing the kind of a stream |
//! | [`spool`] | bytes in memory or in an unlinked temporary file |
//! | [`buffer_pool`] | large buffers that are used again |

pub mod archive;
pub mod buffer_pool;
pub mod cache_info;
pub mod cli;
pub mod compress_nar;
pub mod compression;
pub mod content_address;
pub mod extras;
pub mod hash;
mod input_error;
pub mod narinfo;
pub mod narinfo_builder;
pub mod run;
pub mod spool;
pub mod stream;
pub mod verify_nar;
