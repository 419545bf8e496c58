//! The documentation: its commands run, its links lead somewhere, and every hint of the tools is explained, and
//! their JSON output has the documented form.

mod blocks;
mod commands;
mod hints;
pub(crate) mod json;
mod links;
