//! Signs with an Ed25519 key of an SSH agent. The agent, or the hardware token behind it, holds the secret key; its
//! signature of a fingerprint is a signature of Nix, because both are plain Ed25519. Each signature is verified before
//! it is used.

pub mod protocol;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::read_text;

use crate::keys::PublicKey;
use protocol::{ED25519, Identity, MAX_MESSAGE_SIZE};

/// The variable with the path of the agent's socket.
const SOCKET_VARIABLE: &str = "SSH_AUTH_SOCK";
/// Maximum size of a public key file in bytes.
const MAX_KEY_FILE_SIZE: u64 = 16 << 10;

/// Which key of the agent is used, and under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey {
    /// How the key is chosen.
    pub selector: KeySelector,
    /// The name of the key in signatures; without it, the comment of the key.
    pub name: Option<String>,
}

/// How a key of the agent is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySelector {
    /// The only Ed25519 key.
    Only,
    /// The key in this public key file of OpenSSH, or with this comment if there is no such file.
    FileOrComment(String),
}

/// An agent and the key that signs.
#[derive(Debug)]
pub struct AgentSigner {
    socket: UnixStream,
    key: [u8; 32],
    public: PublicKey,
}

impl AgentSigner {
    /// Connects to the agent and finds the key.
    ///
    /// # Errors
    /// A usage error if no agent is set, if the key is not in the agent, and if it has no valid name. Fails if the agent
    /// cannot be reached; refuses malformed responses.
    pub fn connect(wanted: &AgentKey) -> Result<Self> {
        let path = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).ok_or_else(|| {
            Error::usage(format!("{SOCKET_VARIABLE} is not set"))
                .with_hint("start an agent with: eval \"$(ssh-agent)\"; ssh-add KEY")
        })?;
        let path = Path::new(&path);
        let connect_error = || format!("cannot connect to the SSH agent at {}", path.display());
        let mut socket = UnixStream::connect(path).map_err(Error::from).context(connect_error)?;
        let answer = exchange(&mut socket, &protocol::identities_request())?;
        let (key, comment) = select(&protocol::parse_identities(&answer)?, &wanted.selector)?;
        let public = public_key(&key, wanted.name.as_deref(), &comment)?;
        Ok(Self { socket, key, public })
    }

    /// Returns the public key under its name.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a fingerprint and returns the signature as `NAME:BASE64`.
    ///
    /// # Errors
    /// Fails if the agent refuses; refuses a signature that is not valid.
    pub fn sign(&mut self, fingerprint: &str) -> Result<String> {
        let request = protocol::sign_request(&self.key, fingerprint.as_bytes());
        if request.len() > MAX_MESSAGE_SIZE {
            let size = fingerprint.len();
            return Err(Error::refused(format!(
                "its fingerprint has {size} bytes, more than an SSH agent accepts ({MAX_MESSAGE_SIZE} bytes)"
            )));
        }
        let answer = exchange(&mut self.socket, &request)?;
        let signature = self.public.signature_text(&protocol::parse_signature(&answer)?);
        if self.public.verifies(fingerprint, &signature) {
            Ok(signature)
        } else {
            Err(Error::refused(format!("the signature of the SSH agent is not valid for {}", self.public)))
        }
    }
}

/// Sends a request and returns the answer.
fn exchange(socket: &mut UnixStream, request: &[u8]) -> Result<Vec<u8>> {
    let size = u32::try_from(request.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut answer_size = [0; 4];
    let failed = |error: io::Error| {
        let error = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it closed the connection without a response".to_owned(),
            _ => error.to_string(),
        };
        Error::failed(format!("cannot talk to the SSH agent: {error}"))
    };
    socket.write_all(&[&size, request].concat()).map_err(failed)?;
    socket.read_exact(&mut answer_size).map_err(failed)?;
    let size = usize::try_from(u32::from_be_bytes(answer_size)).unwrap_or(usize::MAX);
    if size > MAX_MESSAGE_SIZE {
        return Err(Error::refused(format!("the SSH agent announced a response of {size} bytes")));
    }
    let mut answer = vec![0; size];
    socket.read_exact(&mut answer).map_err(failed)?;
    Ok(answer)
}

/// Returns the key that is wanted, and its comment.
fn select(identities: &[Identity], selector: &KeySelector) -> Result<([u8; 32], String)> {
    let keys: Vec<([u8; 32], &str)> =
        identities.iter().filter_map(|identity| Some((identity.ed25519?, identity.comment.as_str()))).collect();
    let (matching, wanted): (Vec<_>, String) = match selector {
        KeySelector::Only => (keys.clone(), format!("one {ED25519} key")),
        KeySelector::FileOrComment(text) => match read_public_key(text)? {
            Some((key, comment)) => {
                let found = keys.iter().filter(|(other, _)| *other == key);
                let comment_of = |other| if comment.is_empty() { other } else { comment.as_str() };
                let found: Vec<_> = found.map(|(key, other)| (*key, comment_of(*other).to_owned())).collect();
                return found.into_iter().next().ok_or_else(|| no_key(&format!("the key in {text}"), identities));
            }
            None => {
                (keys.into_iter().filter(|(_, comment)| comment == text).collect(), format!("one key called {text:?}"))
            }
        },
    };
    match matching.as_slice() {
        [(key, comment)] => Ok((*key, (*comment).to_owned())),
        _ => Err(no_key(&wanted, identities)),
    }
}

fn no_key(wanted: &str, identities: &[Identity]) -> Error {
    let found: Vec<String> =
        identities.iter().map(|identity| format!("{} {:?}", identity.algorithm, identity.comment)).collect();
    let found = if found.is_empty() { "no key".to_owned() } else { found.join(", ") };
    Error::usage(format!("expected {wanted} in the SSH agent, found {found}"))
        .with_hint(format!("add an {ED25519} key with ssh-add, and select it with --ssh-agent KEY.pub"))
}

/// Reads a public key file of OpenSSH, if `path` is one. A comment may contain slashes too.
fn read_public_key(path: &str) -> Result<Option<([u8; 32], String)>> {
    let looks_like_a_file = Path::new(path).extension().is_some_and(|extension| extension == "pub");
    let mut file = match fs::File::open(path) {
        Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_dir()) => return Ok(None),
        Ok(file) => file,
        Err(_) if !looks_like_a_file => return Ok(None),
        Err(error) => return Err(Error::failed(format!("cannot read {path}: {error}"))),
    };
    let text = read_text(&mut file, MAX_KEY_FILE_SIZE).context(|| format!("cannot read {path}"))?;
    if text.trim().is_empty() {
        return Err(Error::usage(format!("{path}: the file contains no public key")));
    }
    let parsed = protocol::parse_public_key_line(&text, |digits| BASE64_STANDARD.decode(digits).ok());
    parsed.context(|| path.to_owned()).map(Some)
}

fn public_key(key: &[u8; 32], name: Option<&str>, comment: &str) -> Result<PublicKey> {
    match name {
        Some(name) => {
            PublicKey::from_bytes(name, key).map_err(|error| Error::usage(format!("--name: {}", error.message())))
        }
        None => PublicKey::from_bytes(comment, key).map_err(|_| {
            Error::usage(format!("the comment of the key, {comment:?}, is not a valid key name"))
                .with_hint("pass --name NAME, such as --name cache.example.org-1")
        }),
    }
}
