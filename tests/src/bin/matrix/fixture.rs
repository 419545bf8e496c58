//! What the rows publish: a small signed closure, and a NAR that is uploaded in parts.

use std::path::PathBuf;

use cache_tests::generated_closure::{self, FileContents, GeneratedPath};
use cache_tests::{Random, Scratch, random_seed, store_path};

/// The smallest part that S3 accepts.
const PART_SIZE: u64 = 5 << 20;

/// Files in a scratch directory: the closure in `root/`, its path list `paths`, its signed archive `closure.tar`; a path
/// of eight parts in `root/`, with its archive `large.tar`; the key pairs `key`, `second` and `third`.
pub struct Fixture {
    /// Where all commands run.
    pub scratch: Scratch,
    /// The closure, references first.
    pub paths: Vec<String>,
    /// The path that refers to all others.
    pub top: String,
    /// The path of eight parts.
    pub large: String,
}

impl Fixture {
    /// Writes the files.
    pub fn prepare() -> Result<Self, String> {
        let seed = random_seed();
        let mut random = Random::new(seed);
        let sizes = [300, 60_000, 900, 250_000, 30];
        let path = |(index, size): (usize, u64)| GeneratedPath {
            path: cache_tests::random_store_path(&mut random, &format!("path-{index}")),
            references: (0..index).collect(),
            size,
        };
        let closure: Vec<_> = sizes.into_iter().enumerate().map(path).collect();
        let large = GeneratedPath { path: store_path("large", seed), references: vec![], size: 8 * PART_SIZE };
        let (large_path, top) = (large.path.clone(), closure.last().map(|path| path.path.clone()).unwrap_or_default());
        let paths: Vec<_> = closure.iter().map(|path| path.path.clone()).collect();
        let scratch = Scratch::removed_on_interrupt();
        let root = scratch.dir("root");
        generated_closure::write(&closure, &root, FileContents::Mixed, seed);
        generated_closure::write(&[large], &root, FileContents::Random, seed);
        scratch.write("paths", generated_closure::path_list(&closure));
        let mut fixture = Self { scratch, paths, top, large: large_path };
        fixture.pack()?;
        Ok(fixture)
    }

    fn pack(&mut self) -> Result<(), String> {
        let pack =
            "nar-pack --root root --no-nix --export --stdin | narinfo-gen --no-nix --archive | cache-sign -k key.sec";
        let script = format!(
            "for key in key second third; do cache-sign keygen $key.example.org-1 $key.sec $key.pub; done; \
             cat paths | {pack} > closure.tar; echo {} | {pack} > large.tar",
            self.large
        );
        let output = self.scratch.sh(&script);
        if output.status != 0 {
            return Err(format!("cannot prepare the closure: {}", output.stderr.trim()));
        }
        let key = self.scratch.sh("cat key.pub").text();
        self.scratch.env("NIX_CONFIG", format!("trusted-public-keys = {key}\n")).env("TOP", &self.top);
        self.scratch.env("LARGE", &self.large);
        Ok(())
    }

    /// Returns the path of a file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}
