//! Publishing: what comes in is uploaded, and becomes visible in an order that never leaves the cache broken.

pub mod existing;
pub mod intake;
pub mod object_options;
pub mod publisher;
pub mod upload;
pub mod upstream;
