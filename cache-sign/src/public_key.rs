//! Prints the public keys of secret keys.

use std::io::Write as _;

use nar_pack::error::Result;
use nar_pack::stdio;

use crate::key_source::SecretKeySources;

/// Writes one `NAME:BASE64` line per key to standard output.
///
/// # Errors
/// The errors of [`SecretKeySources::read`] and of standard output.
pub fn print_public_keys(sources: &SecretKeySources) -> Result {
    let keys = sources.read()?;
    let mut out = stdio::stdout(None)?;
    for key in keys {
        writeln!(out, "{}", key.public())?;
    }
    out.finish()
}
