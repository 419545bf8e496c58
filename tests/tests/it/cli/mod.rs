//! Command lines: help, bad input, and secrets that must not be printed.

mod bad_input;
mod help;
mod messages;
pub(crate) mod help;
mod path_arguments;
mod secrets;
