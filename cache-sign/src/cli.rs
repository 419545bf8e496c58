//! The command line of `cache-sign`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Sign the narinfos that pass through, make the keys for it, and verify signatures.
///
/// Without a command: reads narinfo text or a cache archive from standard input and writes the same with one signature
/// per key added. Signatures that are there stay; none is made twice.
#[derive(Debug, Parser)]
#[command(name = "cache-sign", version, verbatim_doc_comment, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do instead of signing
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How to sign
    #[command(flatten)]
    pub sign: Sign,
}

/// Arguments of signing.
#[derive(Debug, Args)]
pub struct Sign {
    /// File with a secret key (NAME:BASE64, as `keygen` and Nix write it); may be given several times
    #[arg(short, long = "key-file", value_name = "SECRET-FILE")]
    pub key_files: Vec<PathBuf>,

    /// The store directory that store paths begin with
    #[arg(long, value_name = "DIR", env = "NIX_STORE_DIR", default_value = "/nix/store", hide_env_values = true)]
    pub store_dir: String,
}

/// What `cache-sign` does beside signing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key pair, as `nix-store --generate-binary-cache-key`; never overwrites a file
    Keygen {
        /// The key's name, by convention the cache's host name and a number, as in cache.example.org-1
        name: String,
        /// Where to write the secret key (mode 0600)
        secret_file: PathBuf,
        /// Where to write the public key
        public_file: PathBuf,
    },
    /// Print the public key that belongs to a secret key
    PublicKey {
        /// File with the secret key; - for standard input
        secret_file: PathBuf,
    },
    /// Pass on what is signed by enough trusted keys, name the rest on standard error, and exit with 1 if there is any
    Verify(Verify),
}

/// Arguments of `cache-sign verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Which keys to trust
    #[command(flatten)]
    pub trust: Trust,

    /// The store directory that store paths begin with
    #[arg(long, value_name = "DIR", env = "NIX_STORE_DIR", default_value = "/nix/store", hide_env_values = true)]
    pub store_dir: String,
}

/// Which public keys are trusted; shared with `s3-pull`.
#[derive(Debug, Clone, Args)]
pub struct Trust {
    /// Trust this public key (NAME:BASE64); may be given several times. Without one, nix.conf says which are trusted
    #[arg(long = "trusted-public-key", value_name = "KEY")]
    pub trusted_public_keys: Vec<String>,

    /// Trust the trusted-public-keys of FILE, a nix.conf, too; instead of those of the system and the user
    #[arg(long, value_name = "FILE")]
    pub nix_conf: Option<PathBuf>,

    /// How many different trusted keys must have signed a path
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub threshold: u32,
}

const AFTER_HELP: &str = "\
Examples:
  cache-sign keygen cache.example.org-1 key.sec key.pub
  narinfo-gen --archive < closure.export | cache-sign -k key.sec | s3-push s3://my-cache
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec | s3-push s3://my-cache      # rotate a key
  s3-pull --narinfo --no-verify-signatures s3://my-cache \"$P\" | cache-sign verify --trusted-public-key \"$(cat key.pub)\"

Memory: 6 MiB, whatever the size of the archive.

Exit status: 0 done; 1 refused (malformed or truncated stream, a path that is not trusted, a bad
key); 2 usage, or an operation that failed; 141 when the reader of standard output went away.";
