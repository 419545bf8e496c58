//! What is written is what other implementations write and read.

mod differential;
mod fuzz;
mod nix_formats;
mod pack_closure;
mod pack_entry;
mod pack_exact;
