//! Command lines: help, bad input, and secrets that must not be printed.

mod bad_input;
pub(crate) mod help;
mod messages;
mod path_arguments;
mod progress;
mod secrets;
