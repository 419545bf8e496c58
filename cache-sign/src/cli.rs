//! The command line of `cache-sign`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};

/// Sign the narinfos that pass through, make the keys for it, and verify signatures.
///
/// Without a command: reads narinfo text or a cache archive from standard input and writes the same with one signature
/// per key added. Signatures that are there stay, byte for byte; none is made twice.
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

    /// The rest of the keys
    #[command(flatten)]
    pub keys: OpenKeys,

    /// Drop the signatures of the key called NAME before signing, whether they hold or not; may be given several times
    #[arg(long, value_name = "NAME")]
    pub replace: Vec<String>,

    /// The store directory that store paths begin with
    #[arg(long, value_name = "DIR", env = "NIX_STORE_DIR", default_value = "/nix/store", hide_env_values = true)]
    pub store_dir: String,
}

/// Secret keys that need no file of their own.
#[derive(Debug, Args)]
pub struct OpenKeys {
    /// Read a secret key from the open file descriptor N, 3 or more, as in 3< <(pass show cache); may be given several times
    #[arg(long = "key-fd", value_name = "N")]
    pub key_fds: Vec<String>,

    /// Take a secret key from the environment variable NAME; may be given several times
    #[arg(long = "key-env", value_name = "NAME")]
    pub key_envs: Vec<String>,

    /// Take secret keys of 32 bytes too, the secret half alone; beware, a public key looks the same
    #[arg(long)]
    pub seed: bool,
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
    PublicKey(PublicKey),
    /// Pass on what is signed by enough trusted keys, name the rest on standard error, and exit with 1 if there is any
    #[command(after_help = AFTER_HELP_VERIFY)]
    Verify(Verify),
}

/// Arguments of `cache-sign public-key`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["secret_file", "key_fds", "key_envs"])))]
pub struct PublicKey {
    /// File with the secret key; - for standard input
    pub secret_file: Option<PathBuf>,

    /// Where else the key may be
    #[command(flatten)]
    pub keys: OpenKeys,
}

/// Arguments of `cache-sign verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Which keys to trust
    #[command(flatten)]
    pub trust: Trust,

    /// Write one JSON object per path instead of what holds: which keys signed it, and what each signature is worth
    #[arg(long)]
    pub json: bool,

    /// The store directory that store paths begin with
    #[arg(long, value_name = "DIR", env = "NIX_STORE_DIR", default_value = "/nix/store", hide_env_values = true)]
    pub store_dir: String,
}

/// Which public keys are trusted; shared with `s3-pull`.
#[derive(Debug, Clone, Args)]
pub struct Trust {
    /// Which keys the command line names
    #[command(flatten)]
    pub named: PublicKeys,

    /// Trust the trusted-public-keys of FILE, a nix.conf, too; instead of those of the system and the user
    #[arg(long, value_name = "FILE")]
    pub nix_conf: Option<PathBuf>,

    /// How many different trusted keys must have signed a path
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub threshold: u32,
}

/// Public keys on the command line; shared with `cache-policy`.
#[derive(Debug, Clone, Default, Args)]
pub struct PublicKeys {
    /// Trust this public key (NAME:BASE64); may be given several times. Without one, nix.conf says which are trusted
    #[arg(long = "trusted-public-key", value_name = "KEY")]
    pub trusted_public_keys: Vec<String>,

    /// Trust the public keys in FILE, separated by white space, as `keygen` writes one; may be given several times
    #[arg(long = "trusted-public-key-file", value_name = "FILE")]
    pub trusted_public_key_files: Vec<PathBuf>,
}

const AFTER_HELP: &str = "\
Keys. A secret key is NAME:BASE64 of the 64 bytes of secret and public half, as Nix writes it, or
with --seed of the 32 bytes of the secret half alone. It is never an argument. A key whose public half belongs to
another secret half is refused; a key file that its group or others may read gets a warning. Keys
are wiped from memory after use; what an environment variable holds stays there, for every process
of the same user to read, so prefer --key-fd.

--replace only changes what passes through. s3-push keeps signatures that the cache has and the text
lacks: to take them out of a cache, push with --exact.

Examples:
  cache-sign keygen cache.example.org-1 key.sec key.pub
  narinfo-gen --archive < closure.export | cache-sign -k key.sec | s3-push s3://my-cache
  cache-sign --key-fd 3 3< <(pass show cache-key) < narinfos
  cache-sign --key-env CACHE_SECRET_KEY < narinfos
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec | s3-push s3://my-cache      # rotate a key
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec --replace old-1 | s3-push --exact s3://my-cache
  s3-pull --narinfo --no-verify-signatures s3://my-cache \"$P\" | cache-sign verify --trusted-public-key \"$(cat key.pub)\"

Memory: 6 MiB, whatever the size of the archive. For verify see its help.

Exit status: 0 done; 1 refused (malformed or truncated stream, a path that is not trusted, a bad
key); 2 usage, or an operation that failed; 141 when the reader of standard output went away.";

const AFTER_HELP_VERIFY: &str = "\
Of an archive, a narinfo passes when it is trusted and a NAR that came before it is what it says; a NAR
passes when such a narinfo names it: its bytes have the FileHash and FileSize, and unpacked the NarHash
and NarSize. Until then it waits in an unlinked file in $TMPDIR. Refused with a line each: a NAR that is
another or malformed, that no narinfo names, or whose key was there with other bytes; any other key
that is there twice. A narinfo whose NAR is not in the archive passes. A path whose name follows from
its contents (a fixed-output path) needs no signature. A key under two names counts once.

What no signature of a narinfo covers is not checked and passes: nix-cache-info, listings, logs,
debuginfo/, realisations/ and build-trace-v2/, of which clients check the signatures themselves.

With --json, standard output has one line per path, of those that are refused too:
  {\"path\":\"/nix/store/…\",\"trusted\":true,\"signedBy\":[\"alice-1\",\"bob-1\"],\"threshold\":2,\"contentAddressed\":false,
   \"signatures\":[{\"key\":\"alice-1\",\"verdict\":\"valid\"},…]}
A verdict is valid, wrong (of a trusted key's name, but not its signature of this path), or unknown-key.
What does not fit a NAR that came before it is not trusted either.

Memory: 16 MiB for what narinfo-gen packs, whatever its size, and about 500 bytes for each path; where
other tools packed with a larger window, that much more, up to 256 MiB.

Exit status: 0 everything holds; 1 something does not; 2 usage, or an operation that failed.";
