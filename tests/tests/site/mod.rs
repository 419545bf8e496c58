//! A user's directory: a closure laid out without Nix, a key pair, and the pipelines that publish it.

#![allow(dead_code, clippy::expect_used)] // each test file takes a part of it, and a panic is how a test fails

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use cache_tests::{EmbeddedS3, Scratch, make_tree, store_path, tree, unique};

/// Publishes what is missing of the closure in `root/`: the pipeline of five stages, without Nix.
pub const PUBLISH: &str = "s3-push --missing \"$C\" < paths | nar-pack --root root --no-nix --export --stdin \
     | narinfo-gen --no-nix --archive | cache-sign -k key.sec | s3-push --no-nix \"$C\"";

/// Writes the signed cache archive of the closure in `root/`.
pub const ARCHIVE: &str = "nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix --archive \
     | cache-sign -k key.sec";

/// A user's directory: a closure of three paths below `root/`, its path list in `paths`, a key pair in `key.sec` and
/// `key.pub` that nix.conf trusts.
pub struct Site {
    /// Where the commands run.
    pub scratch: Scratch,
    /// The closure.
    pub closure: Closure,
    /// The public key.
    pub key: String,
}

/// Three store paths, each of which refers to the one before; the last one also to itself.
pub struct Closure {
    /// Refers to nothing; has some of everything.
    pub lib: String,
    /// Refers to `lib`.
    pub app: String,
    /// Refers to `app` and to itself.
    pub top: String,
}

impl Closure {
    /// All paths, references first.
    pub fn paths(&self) -> [&str; 3] {
        [&self.lib, &self.app, &self.top]
    }

    /// Makes a closure that is the same for the same seed below `root`.
    pub fn lay_out(root: &Path, seed: u64) -> Self {
        let closure = Self { lib: store_path("lib", seed), app: store_path("app", seed), top: store_path("top", seed) };
        make_tree(below(root, &closure.lib), seed);
        let app = below(root, &closure.app);
        fs::create_dir_all(app.join("bin")).unwrap();
        fs::write(app.join("bin/app"), format!("#!/bin/sh\nexec {}/bin/hello\n", closure.lib)).unwrap();
        fs::set_permissions(app.join("bin/app"), fs::Permissions::from_mode(0o755)).unwrap();
        let top = below(root, &closure.top);
        fs::create_dir_all(&top).unwrap();
        symlink(format!("{}/bin", closure.app), top.join("bin")).unwrap();
        fs::write(top.join("self"), &closure.top).unwrap();
        closure
    }
}

impl Site {
    /// A fresh one; the closure has a name of its own.
    pub fn new() -> Self {
        Self::with_seed(random_seed())
    }

    /// A fresh one whose closure is the same for the same seed.
    pub fn with_seed(seed: u64) -> Self {
        let mut scratch = Scratch::new();
        let closure = Closure::lay_out(&scratch.path().join("root"), seed);
        fs::write(scratch.path().join("paths"), closure.paths().join("\n") + "\n").unwrap();
        scratch.env("LIB", &closure.lib).env("APP", &closure.app).env("TOP", &closure.top);
        let key = make_key(&scratch, "key");
        scratch.env("NIX_CONFIG", format!("trusted-public-keys = {key}\n")).env("KEY", &key);
        Self { scratch, closure, key }
    }

    /// A site, a fresh bucket of the embedded server as `$C`, and the credentials for it.
    pub fn embedded() -> (Self, &'static EmbeddedS3, String) {
        let mut site = Self::new();
        let s3 = EmbeddedS3::shared();
        let bucket = site.fresh_bucket(s3);
        (site, s3, bucket)
    }

    /// Makes a fresh bucket `$C`.
    pub fn fresh_bucket(&mut self, s3: &EmbeddedS3) -> String {
        let bucket = s3.make_bucket();
        s3.credentials().apply(&mut self.scratch);
        self.scratch.env("C", s3.cache_url(&bucket));
        bucket
    }

    /// The file `name` in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Asserts that the three trees below `root` are those of the closure.
    #[track_caller]
    pub fn assert_trees(&self, root: &str) {
        for path in self.closure.paths() {
            let expected = tree(below(&self.path("root"), path));
            assert_eq!(tree(below(&self.path(root), path)), expected, "{path} below {root}");
        }
    }

    /// Asserts that no store path, whole or not, lies below `root`, nor anything temporary.
    #[track_caller]
    pub fn assert_nothing_below(&self, root: &str) {
        let found = self.scratch.sh(&format!(
            "if [ -e {root} ]; then find {root} -mindepth 1 ! -path {root}/nix ! -path {root}/nix/store; fi"
        ));
        assert_eq!(found.ok(), "", "below {root}");
    }

    /// The key of a path's narinfo.
    pub fn narinfo_key(path: &str) -> String {
        format!("{}.narinfo", &path["/nix/store/".len()..][..32])
    }
}

/// Where a store path lies below `root`.
pub fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A number that nobody else gets.
pub fn random_seed() -> u64 {
    u64::from_str_radix(&unique(""), 16).unwrap()
}

/// Makes the key pair `FILE.sec`, `FILE.pub` in `scratch`, and returns the public key.
pub fn make_key(scratch: &Scratch, file: &str) -> String {
    let name = unique("test.example.org-");
    scratch.sh(&format!("cache-sign keygen {name} {file}.sec {file}.pub; cat {file}.pub")).ok()
}
