//! The command lines.

mod bad_input;
mod help;
mod secrets;
