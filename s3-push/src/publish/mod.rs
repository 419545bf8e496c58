//! Publishing: objects are uploaded and become visible in an order that keeps the cache valid at all times.
//!
//! `intake` reads standard input and sends events; `publisher` receives them and starts one task per NAR and per path
//! (`nar_state`, `publish_path`); `upload` and `multipart` send the bodies.

pub mod body;
pub mod byte_budget;
pub mod cache_info;
pub mod collection;
pub mod existing;
pub mod intake;
mod merge_narinfo;
pub mod missing;
mod multipart;
mod nar_state;
mod nars;
pub mod object_options;
pub mod part_sizes;
mod publish_path;
pub mod publisher;
pub mod put_key;
pub mod upload;
pub mod upstream;
