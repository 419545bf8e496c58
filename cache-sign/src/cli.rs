//! The command line of `cache-sign`. Contains only clap definitions; `run` turns them into one typed mode.

use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};
use nar_pack::option_values::parse_number;
use narinfo_gen::cli::DecompressionArgs;

/// Sign the narinfos of a Nix binary cache, generate keys, and verify signatures
///
/// Without a command, reads narinfo text or a cache archive from standard input and writes it to standard output with one signature per key added to each narinfo. Existing signatures are kept unchanged, and a narinfo that a key has already signed is not signed by it again.
#[derive(Debug, Parser)]
#[command(
    name = "cache-sign", version, max_term_width = 100, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP,
    args_conflicts_with_subcommands = true, disable_help_flag = true, disable_version_flag = true
)]
pub struct Cli {
    /// The command to run instead of signing
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Arguments of signing
    #[command(flatten)]
    pub sign: SignArgs,

    /// Print help: a summary with -h, all of it with --help
    #[arg(short, long, global = true, action = ArgAction::Help, help_heading = "Common")]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Common")]
    version: Option<bool>,
}

/// Arguments of signing.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// Sign with the secret key in FILE; can be repeated
    ///
    /// The file contains NAME:BASE64, as written by `cache-sign keygen` and by Nix. A warning is printed if other users can read it.
    #[arg(short, long = "key-file", value_name = "FILE", help_heading = "Input")]
    pub key_files: Vec<PathBuf>,

    /// Secret keys from other sources
    #[command(flatten)]
    pub keys: SecretKeyArgs,

    /// A key of an SSH agent
    #[command(flatten)]
    pub agent: AgentArgs,

    /// A command that signs
    #[command(flatten)]
    pub signer: SignerArgs,

    /// Remove the signatures by keys called NAME first; can be repeated
    ///
    /// All signatures of that name are removed before signing, valid or not. This changes only the stream: s3-push keeps the signatures that are already in the bucket unless --exact is given.
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    pub replace: Vec<String>,

    /// Set the store directory of the paths
    #[arg(
        long,
        value_name = "DIR",
        env = "NIX_STORE_DIR",
        default_value = "/nix/store",
        hide_env_values = true,
        help_heading = "Common"
    )]
    pub store_dir: String,
}

/// Sources of secret keys other than a file.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Input")]
pub struct SecretKeyArgs {
    /// Read a secret key from file descriptor N; can be repeated
    ///
    /// N is the number of an open file descriptor, 3 or more, as in `--key-fd 3 3< <(pass show cache-key)`.
    #[arg(long = "key-fd", value_name = "N")]
    pub key_fds: Vec<String>,

    /// Read a secret key from environment variable NAME; can be repeated
    ///
    /// Other processes of the same user can read the variable; prefer --key-fd.
    #[arg(long = "key-env", value_name = "NAME")]
    pub key_envs: Vec<String>,

    /// Accept a secret key of 32 bytes, the secret half alone
    ///
    /// Such a key cannot be distinguished from a public key. Signatures made with a public key by mistake can be forged by anyone.
    #[arg(long)]
    pub seed: bool,
}

/// A key of an SSH agent.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Input")]
pub struct AgentArgs {
    /// Use an ssh-ed25519 key of the SSH agent
    ///
    /// The agent is that of $SSH_AUTH_SOCK. KEY is the file of a public key of OpenSSH, or the comment of a key. It can be omitted if the agent has only one ssh-ed25519 key.
    #[arg(long, value_name = "KEY", num_args = 0..=1)]
    #[allow(clippy::option_option)] // clap's type of an option whose value may be omitted
    pub ssh_agent: Option<Option<String>>,

    /// Set the name of the agent's key in signatures [default: the comment of the key]
    ///
    /// Clients list the key under this name in trusted-public-keys; `cache-sign public-key --ssh-agent` prints the entry.
    #[arg(long, value_name = "NAME", requires = "ssh_agent")]
    pub name: Option<String>,
}

/// A command that signs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Input")]
pub struct SignerArgs {
    /// Sign with COMMAND, which reads fingerprints and writes signatures
    ///
    /// COMMAND is run once, by /bin/sh -c. It reads one fingerprint per line, in base64, and writes the Ed25519 signature of its decoded bytes, in base64 on one line, in the same order. It must answer while its input is open: at most 1024 fingerprints are outstanding. Every signature is verified with the public key before it is written. If the command fails, the output is truncated, and the next tool of a pipeline refuses it.
    #[arg(long, value_name = "COMMAND")]
    pub signer: Option<String>,

    /// Verify the signatures of --signer with this public key, NAME:BASE64
    #[arg(long, value_name = "KEY", requires = "signer")]
    pub public_key: Option<String>,

    /// Read the public key of --signer from FILE
    #[arg(long, value_name = "FILE", requires = "signer", conflicts_with = "public_key")]
    pub public_key_file: Option<PathBuf>,

    /// Refuse fingerprints of more than N bytes, the limit of the service behind --signer
    ///
    /// A message names each path that exceeds the limit, and nothing is signed after the first one. A fingerprint contains the store paths of all references, about 70 bytes each. The limit of AWS KMS is 4096.
    #[arg(long, value_name = "N", requires = "signer", hide_short_help = true)]
    pub signer_max_bytes: Option<usize>,
}

/// The commands other than signing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate a key pair
    ///
    /// Writes both keys to new files, in the format of `nix-store --generate-binary-cache-key`. Existing files are never overwritten.
    #[command(after_long_help = AFTER_LONG_HELP_KEYGEN)]
    Keygen(KeygenArgs),
    /// Print the public key of a secret key
    #[command(after_long_help = AFTER_LONG_HELP_PUBLIC_KEY)]
    PublicKey(PublicKeyArgs),
    /// Verify narinfos and pass on those that are trusted
    ///
    /// Reads narinfo text or a cache archive from standard input, writes what is signed by enough trusted keys to standard output, and prints a message for each path that is refused. Exits with status 1 if anything is refused.
    #[command(after_help = AFTER_HELP_VERIFY, after_long_help = AFTER_LONG_HELP_VERIFY)]
    Verify(VerifyArgs),
}

/// Arguments of `cache-sign keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Name of the key, such as cache.example.org-1
    ///
    /// By convention it is the host name of the cache and a number, which is increased when the key is replaced.
    pub name: String,

    /// Write the secret key to this file, with mode 0600
    pub secret_file: PathBuf,

    /// Write the public key to this file
    pub public_file: PathBuf,
}

/// Arguments of `cache-sign public-key`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["secret_file", "key_fds", "key_envs", "ssh_agent"])))]
pub struct PublicKeyArgs {
    /// Read the secret key from this file; - is standard input
    pub secret_file: Option<PathBuf>,

    /// Secret keys from other sources
    #[command(flatten)]
    pub keys: SecretKeyArgs,

    /// A key of an SSH agent
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// Arguments of `cache-sign verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Trusted keys
    #[command(flatten)]
    pub trust: TrustArgs,

    /// Print one JSON object per path instead of the trusted data
    ///
    /// The object states whether the path is trusted, which trusted keys signed it, and the status of each signature.
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Options of decompression
    #[command(flatten)]
    pub decompression_args: DecompressionArgs,

    /// Set the store directory of the paths
    #[arg(
        long,
        value_name = "DIR",
        env = "NIX_STORE_DIR",
        default_value = "/nix/store",
        hide_env_values = true,
        help_heading = "Common"
    )]
    pub store_dir: String,
}

/// Which public keys are trusted; shared with `s3-pull`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Trust")]
pub struct TrustArgs {
    /// Public keys given on the command line
    #[command(flatten)]
    pub keys: TrustedKeyArgs,

    /// Trust the trusted-public-keys of FILE, a nix.conf
    ///
    /// These keys are trusted in addition to those given with other options. If no option gives a key, the nix.conf files of the system and the user are read.
    #[arg(long, value_name = "FILE")]
    pub nix_conf: Option<PathBuf>,

    /// Require signatures by K different trusted keys
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = parse_number(1_u32..=1000))]
    pub threshold: u32,
}

/// Public keys on the command line; shared with `cache-policy`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Trust")]
pub struct TrustedKeyArgs {
    /// Trust this public key, NAME:BASE64; can be repeated
    ///
    /// The value can also contain several keys, separated by whitespace.
    #[arg(long = "trusted-public-key", value_name = "KEY")]
    pub trusted_public_keys: Vec<String>,

    /// Trust the public keys in FILE; can be repeated
    ///
    /// The keys are separated by whitespace. `cache-sign keygen` writes such a file.
    #[arg(long = "trusted-public-key-file", value_name = "FILE")]
    pub trusted_public_key_files: Vec<PathBuf>,
}

const AFTER_HELP: &str = "\
Example:
  narinfo-gen --archive < closure.export | cache-sign -k key.sec | s3-push s3://my-cache

Run 'cache-sign --help' for details and more examples.";

const AFTER_LONG_HELP: &str = "\
Secret keys:
A secret key is NAME:BASE64. The base64 text is 64 bytes, the secret half and the public half, or with --seed the 32 bytes of the secret half alone. A key is refused if its two halves do not match. A key cannot be given as an argument, because other users can see the arguments of a process. Keys are wiped from memory after use.

Examples:
  cache-sign keygen cache.example.org-1 key.sec key.pub
  narinfo-gen --archive < closure.export | cache-sign -k key.sec | s3-push s3://my-cache
  cache-sign --key-fd 3 3< <(pass show cache-key) < narinfos
  cache-sign --key-env CACHE_SECRET_KEY < narinfos
  cache-sign --ssh-agent ~/.ssh/cache.pub --name cache.example.org-1 < narinfos
  cache-sign --signer ./sign-with-vault --public-key-file key.pub < narinfos

  Add the signatures of a new key to a cache, then remove those of the old key:
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec | s3-push s3://my-cache
  s3-pull --narinfo --all s3://my-cache | cache-sign -k new.sec --replace old-1 \\
    | s3-push --exact s3://my-cache

  Sign a cache without signatures, if you trust everyone who could write to it:
  s3-pull --narinfo --all --no-verify-signatures s3://my-cache | cache-sign -k key.sec \\
    | s3-push s3://my-cache

  Verify a path against one key:
  s3-pull --narinfo --no-verify-signatures s3://my-cache \"$P\" \\
    | cache-sign verify --trusted-public-key-file key.pub

Memory: 6 MiB for any size of archive, and at most 40 MiB more with --signer; see 'cache-sign verify --help' for verification.

Exit status:
  0    success
  1    refused: a malformed or truncated stream, or an invalid key
  2    usage error, or an operation failed
  141  the reader of standard output closed the pipe";

const AFTER_LONG_HELP_KEYGEN: &str = "\
Example:
  cache-sign keygen cache.example.org-1 key.sec key.pub";

const AFTER_LONG_HELP_PUBLIC_KEY: &str = "\
Examples:
  cache-sign public-key key.sec
  cache-sign public-key --ssh-agent ~/.ssh/cache.pub --name cache.example.org-1
  pass show cache-key | cache-sign public-key -";

const AFTER_HELP_VERIFY: &str = "Run 'cache-sign verify --help' for what is verified in an archive, and for examples.";

const AFTER_LONG_HELP_VERIFY: &str = "\
Trust:
A narinfo is trusted if K different trusted keys have signed it. A key that is given under two names counts once. A path whose name is computed from its NAR hash (a fixed-output path) needs no signature.

Archives:
A NAR passes if a trusted narinfo refers to it and FileHash, FileSize, NarHash and NarSize match its contents. A narinfo passes if it is trusted and matches its NAR, if the NAR comes before it; the NAR need not be in the archive. NARs are stored in an unlinked file in $TMPDIR until a narinfo refers to them. If one comes before its NAR and the NAR is refused, the output is truncated. A NAR is unpacked only for a trusted narinfo, and not beyond its NarSize. A message is printed for each member that is refused: a NAR that no narinfo refers to, and a key that occurs twice, unless it is that of the same NAR.

Not covered by the signature of a narinfo, and passed on without verification: nix-cache-info, listings, logs, debuginfo/, realisations/ and build-trace-v2/. Clients verify the signatures in the last two themselves.

Output of --json, one line per path, including refused paths:
  {\"version\":1,\"path\":\"/nix/store/…\",\"trusted\":true,\"signedBy\":[\"alice-1\",\"bob-1\"],
   \"threshold\":2,\"contentAddressed\":false,\"signatures\":[{\"key\":\"alice-1\",\"verdict\":\"valid\"},…]}
The verdict is valid, wrong (it names a trusted key, but is not a signature of this path by that key) or unknown-key. A path is also not trusted if it does not match a NAR that came before it.

Examples:
  cache-sign verify --trusted-public-key-file key.pub < narinfos
  cache-sign verify --threshold 2 --trusted-public-key-file keys.pub < archive \\
    | s3-push s3://my-cache

Memory: 16 MiB for NARs of any size packed by narinfo-gen, plus about 500 bytes per path. NARs that other tools packed with a larger window need that much more, up to --decoder-memory.

Exit status:
  0    everything is trusted
  1    something was refused
  2    usage error, or an operation failed
  141  the reader of standard output closed the pipe";
