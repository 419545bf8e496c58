//! Turns the command line into one [`Mode`] and runs it. All flags are checked here; the modules of the modes do not
//! see the command line.

use std::path::{Path, PathBuf};

use nar_pack::error::{Error, Result};
use nar_pack::store_path::StoreDir;

use crate::cli::{Cli, Command, SignArgs, VerifyArgs};
use crate::key_source::SecretKeySources;
use crate::keygen::generate_key_pair;
use crate::public_key::print_public_keys;
use crate::sign::{SignOptions, sign};
use crate::trust::TrustedKeys;
use crate::verify::{VerifyOptions, verify};

/// The name of the tool in messages.
pub(crate) const TOOL: &str = "cache-sign";

/// What one invocation does.
#[derive(Debug)]
pub enum Mode {
    /// Sign the narinfos on standard input.
    Sign(SignOptions),
    /// Generate a key pair.
    Keygen {
        /// The name of the key.
        name: String,
        /// The file for the secret key.
        secret_file: PathBuf,
        /// The file for the public key.
        public_file: PathBuf,
    },
    /// Print the public keys of these secret keys.
    PublicKey(SecretKeySources),
    /// Verify the narinfos on standard input.
    Verify(VerifyOptions),
}

impl Mode {
    /// Determines the mode from the command line. Reads the trusted keys of `verify`, but no secret key.
    ///
    /// # Errors
    /// A usage error for flags that do not fit together, and the errors of [`TrustedKeys::from_cli`].
    pub fn from_cli(cli: &Cli) -> Result<Self> {
        match &cli.command {
            None => sign_options(&cli.sign).map(Self::Sign),
            Some(Command::Keygen(args)) => Ok(Self::Keygen {
                name: args.name.clone(),
                secret_file: args.secret_file.clone(),
                public_file: args.public_file.clone(),
            }),
            Some(Command::PublicKey(args)) => {
                SecretKeySources::new(args.secret_file.as_slice(), &args.keys).map(Self::PublicKey)
            }
            Some(Command::Verify(args)) => verify_options(args).map(Self::Verify),
        }
    }
}

/// Runs `cache-sign`.
///
/// # Errors
/// See the exit codes in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    match Mode::from_cli(cli)? {
        Mode::Sign(options) => sign(&options),
        Mode::Keygen { name, secret_file, public_file } => generate_key_pair(&name, &secret_file, &public_file),
        Mode::PublicKey(sources) => print_public_keys(&sources),
        Mode::Verify(options) => verify(&options),
    }
}

fn sign_options(args: &SignArgs) -> Result<SignOptions> {
    if args.key_files.iter().any(|file| file == Path::new("-")) {
        let error = Error::usage("cannot read the key from standard input, which is the data to sign");
        return Err(error.with_hint("pass the key on another file descriptor with --key-fd"));
    }
    let keys = SecretKeySources::new(&args.key_files, &args.keys)?;
    if keys.is_empty() {
        return Err(Error::usage("no secret key given: use --key-file, --key-fd or --key-env"));
    }
    Ok(SignOptions { keys, replace: args.replace.clone(), store_dir: StoreDir::new(&args.store_dir)? })
}

fn verify_options(args: &VerifyArgs) -> Result<VerifyOptions> {
    args.decompression_args.apply();
    Ok(VerifyOptions {
        trusted: TrustedKeys::from_cli(&args.trust)?,
        json: args.json,
        store_dir: StoreDir::new(&args.store_dir)?,
    })
}
