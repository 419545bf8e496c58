//! Turns the command line into one [`Mode`] and runs it. All flags are checked here; the modules of the modes do not
//! see the command line.

use std::path::{Path, PathBuf};

use nar_pack::error::{Context as _, Error, Result};
use nar_pack::store_path::StoreDir;

use crate::cli::{AgentArgs, Cli, Command, KeygenArgs, SignArgs, SignerArgs, TrustedKeyArgs, VerifyArgs};
use crate::key_source::SecretKeySources;
use crate::keygen::generate_key_pair;
use crate::keys::PublicKey;
use crate::public_key::print_public_keys;
use crate::sign::{SignOptions, sign};
use crate::signer_command::SignerOptions;
use crate::ssh_agent::{AgentKey, KeySelector};
use crate::trust::{TrustedKeys, read_public_keys};
use crate::verify::{VerifyOptions, verify};

/// The name of the tool in messages.
pub(crate) const TOOL: &str = "cache-sign";

/// What one invocation does.
#[derive(Debug)]
pub enum Mode {
    /// Sign the narinfos on standard input.
    Sign(Box<SignOptions>),
    /// Generate a key pair.
    Keygen {
        /// The name of the key.
        name: String,
        /// The file for the secret key.
        secret_file: PathBuf,
        /// The file for the public key.
        public_file: PathBuf,
    },
    /// Print public keys.
    PublicKey {
        /// Secret keys.
        keys: SecretKeySources,
        /// A key of an SSH agent.
        agent: Option<AgentKey>,
    },
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
            None => sign_options(&cli.sign).map(Box::new).map(Self::Sign),
            Some(Command::Keygen(args)) => keygen(args),
            Some(Command::PublicKey(args)) => Ok(Self::PublicKey {
                keys: SecretKeySources::new(args.secret_file.as_slice(), &args.keys)?,
                agent: agent_key(&args.agent)?,
            }),
            Some(Command::Verify(args)) => verify_options(args).map(Self::Verify),
        }
    }
}

/// Runs `cache-sign`.
///
/// # Errors
/// See the exit statuses in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    match Mode::from_cli(cli)? {
        Mode::Sign(options) => sign(&options),
        Mode::Keygen { name, secret_file, public_file } => generate_key_pair(&name, &secret_file, &public_file),
        Mode::PublicKey { keys, agent } => print_public_keys(&keys, agent.as_ref()),
        Mode::Verify(options) => verify(&options),
    }
}

fn keygen(args: &KeygenArgs) -> Result<Mode> {
    require_value("NAME", &args.name, "the name of the key")?;
    Ok(Mode::Keygen {
        name: args.name.clone(),
        secret_file: args.secret_file.clone(),
        public_file: args.public_file.clone(),
    })
}

fn sign_options(args: &SignArgs) -> Result<SignOptions> {
    if args.key_files.iter().any(|file| file == Path::new("-")) {
        let error = Error::usage("cannot read the key from standard input, which is the data to sign");
        return Err(error.with_hint("pass the key on another file descriptor with --key-fd"));
    }
    for name in &args.replace {
        require_value("--replace", name, "the name of a key")?;
    }
    let keys = SecretKeySources::new(&args.key_files, &args.keys)?;
    let (agent, command) = (agent_key(&args.agent)?, signer_options(&args.signer, &args.keys.key_envs)?);
    if keys.is_empty() && agent.is_none() && command.is_none() {
        return Err(Error::usage("no key given: use --key-file, --key-fd, --key-env, --ssh-agent or --signer"));
    }
    Ok(SignOptions { keys, agent, command, replace: args.replace.clone(), store_dir: StoreDir::new(&args.store_dir)? })
}

fn agent_key(args: &AgentArgs) -> Result<Option<AgentKey>> {
    if let Some(name) = &args.name {
        require_value("--name", name, "the name of the key")?;
    }
    let selector = match &args.ssh_agent {
        None => return Ok(None),
        Some(None) => KeySelector::Only,
        Some(Some(text)) => {
            require_value("--ssh-agent", text, "a public key file or the comment of a key")?;
            KeySelector::FileOrComment(text.clone())
        }
    };
    Ok(Some(AgentKey { selector, name: args.name.clone() }))
}

fn signer_options(args: &SignerArgs, secret_variables: &[String]) -> Result<Option<SignerOptions>> {
    let Some(command) = &args.signer else { return Ok(None) };
    require_value("--signer", command, "a command")?;
    let public = match (&args.public_key, &args.public_key_file) {
        (Some(text), _) => {
            require_value("--public-key", text, "a public key")?;
            PublicKey::parse(text).context(|| "--public-key")?
        }
        (None, Some(file)) => read_public_key(file)?,
        (None, None) => {
            return Err(Error::usage("--signer requires --public-key or --public-key-file")
                .with_hint("the signatures of the command are verified with this key"));
        }
    };
    let (command, max_size) = (command.clone(), args.signer_max_bytes);
    Ok(Some(SignerOptions { command, public, max_size, secret_variables: secret_variables.to_vec() }))
}

/// Reads the file of one public key.
fn read_public_key(file: &Path) -> Result<PublicKey> {
    let args = TrustedKeyArgs { trusted_public_key_files: vec![file.to_owned()], ..TrustedKeyArgs::default() };
    match read_public_keys(&args)?.as_slice() {
        [key] => Ok(key.clone()),
        keys => Err(Error::usage(format!("{}: expected one public key, found {}", file.display(), keys.len()))),
    }
}

/// Rejects an empty value, which is what an unset variable in a script gives.
fn require_value(option: &str, value: &str, expected: &str) -> Result {
    if value.trim().is_empty() {
        return Err(Error::usage(format!("{option}: expected {expected}, found an empty value")));
    }
    Ok(())
}

fn verify_options(args: &VerifyArgs) -> Result<VerifyOptions> {
    args.decompression_args.apply();
    Ok(VerifyOptions {
        trusted: TrustedKeys::from_cli(&args.trust)?,
        json: args.json,
        store_dir: StoreDir::new(&args.store_dir)?,
    })
}
