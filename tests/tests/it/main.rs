//! The integration tests, by subject, in one binary: each test links the AWS SDK once.

// A panic is how a test fails, and its tables are for readers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod cli;
mod faults;
mod fixtures;
mod formats;
mod layers;
mod names;
mod pipelines;
mod policies;
/// What the fuzz targets check, replayed here without a fuzzer.
#[path = "../../fuzz/src/lib.rs"]
mod properties;
mod pull;
mod push;
mod support;
mod tidy;
mod trust;
