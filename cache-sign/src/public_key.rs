//! Prints the public keys of secret keys and of the key of an SSH agent.

use std::io::Write as _;

use nar_pack::error::Result;
use nar_pack::stdio;

use crate::key_source::SecretKeySources;
use crate::keys::{PublicKey, SecretKey};
use crate::ssh_agent::{AgentKey, AgentSigner};

/// Writes one `NAME:BASE64` line per key to standard output.
///
/// # Errors
/// The errors of [`SecretKeySources::read`], of [`AgentSigner::connect`] and of standard output.
pub fn print_public_keys(sources: &SecretKeySources, agent: Option<&AgentKey>) -> Result {
    let mut keys: Vec<PublicKey> = sources.read()?.iter().map(SecretKey::public).collect();
    if let Some(agent) = agent {
        keys.push(AgentSigner::connect(agent)?.public().clone());
    }
    let mut out = stdio::stdout(None)?;
    for key in keys {
        writeln!(out, "{key}")?;
    }
    out.finish()
}
