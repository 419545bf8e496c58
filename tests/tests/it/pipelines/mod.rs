//! Pipelines of several tools, as a user types them.

mod examples;
mod interrupted;
mod memory;
mod publish;
mod with_nix;
