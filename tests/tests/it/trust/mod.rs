//! Keys and signatures: several contributors, archives, key rotation while clients read, and a real Nix.

use crate::fixtures::closure_fixture::Fixture;

mod archives;
mod keys;
mod rotation;
mod signers;

/// Creates a fixture with the unsigned narinfos and archive of its closure, and a key for each of three contributors.
fn contributors() -> (Fixture, [String; 3]) {
    let fixture = Fixture::new();
    let keys = ["alice", "bob", "carol"].map(|name| {
        fixture.scratch.sh(&format!("cache-sign keygen {name}-1 {name}.sec {name}.pub; cat {name}.pub")).ok()
    });
    let export = "nar-pack --root root --no-nix --export --stdin < paths";
    fixture.scratch.sh(&format!("{export} | narinfo-gen --no-nix > narinfos")).ok();
    fixture.scratch.sh(&format!("{export} | narinfo-gen --no-nix --archive > archive")).ok();
    (fixture, keys)
}
