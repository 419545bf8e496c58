//! Pipelines of several tools, as a user types them.

mod added_trees;
pub(crate) mod examples;
mod interrupted;
mod memory;
mod publish;
mod with_nix;
