//! The documents that `cache-policy` prints, checked on two real servers with real users.

use cache_tests::Scratch;

mod access;
mod documents;
mod infrastructure;
mod landing_page;
mod nix_conf;
mod permissions;
mod tools;

fn document(scratch: &Scratch, arguments: &str) -> String {
    let document = scratch.sh(&format!("cache-policy {arguments}")).ok();
    assert_eq!(scratch.sh(&format!("cache-policy {arguments}")).ok(), document, "the same bytes each time");
    document
}
