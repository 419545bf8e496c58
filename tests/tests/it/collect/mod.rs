//! Years with one bucket: pins, and the deletion of paths that nobody needs.

mod dead;
mod delete;
mod model;
mod pins;
mod push;
mod unneeded;
