//! Formats: the output is compatible with Nix and other implementations.

mod decoder_memory;
mod differential;
mod fuzz;
mod nix_formats;
mod pack_closure;
mod pack_entry;
mod pack_exact;
mod unknown_fields;
