//! Years with one bucket: pins, and the deletion of dead paths.

mod check;
mod dead;
mod delete;
mod json;
mod model;
mod pins;
mod push;
mod rights;
mod services;
mod stats;
mod sweep;
mod takeover;
mod unneeded;
