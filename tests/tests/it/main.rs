//! The integration tests by subject, in one binary, so that the AWS SDK is linked once.

// A panic is how a test fails, and its tables on standard output are for people.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod cli;
mod collect;
mod delivery;
mod docs;
mod faults;
mod fixtures;
mod formats;
mod layers;
mod names;
mod pipelines;
mod policies;
/// The properties that the fuzz targets check, checked here without a fuzzer.
#[path = "../../fuzz/src/lib.rs"]
mod properties;
mod pull;
mod push;
mod support;
mod tidy;
mod trust;
