//! Generates a key pair and writes it to two new files: both are created or neither is. As in the files that Nix
//! writes, no newline follows the key.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nar_pack::error::{Error, Result};

use crate::keys::SecretKey;

/// Generates the key pair `name` and writes the secret key to `secret_file` with mode 0600 and the public key to
/// `public_file`.
///
/// # Errors
/// Refuses an invalid name. Fails if one of the files exists or cannot be written.
pub fn generate_key_pair(name: &str, secret_file: &Path, public_file: &Path) -> Result {
    let key = SecretKey::generate(name)?;
    if secret_file == public_file {
        let file = secret_file.display();
        return Err(Error::usage(format!("the secret and the public key cannot be in the same file, {file}")));
    }
    let mut secret = create_new(secret_file, 0o600)?;
    let mut public = create_new(public_file, 0o644).inspect_err(|_| drop(fs::remove_file(secret_file)))?;
    let written = secret
        .write_all(key.to_file_text().as_bytes())
        .and_then(|()| public.write_all(key.public().to_string().as_bytes()))
        .and_then(|()| secret.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(secret_file);
        let _ = fs::remove_file(public_file);
        let (secret_file, public_file) = (secret_file.display(), public_file.display());
        Error::failed(format!("cannot write the key pair to {secret_file} and {public_file}: {error}"))
    })
}

fn create_new(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| {
        let exists = error.kind() == ErrorKind::AlreadyExists;
        let error = Error::failed(format!("cannot create {}: {error}", path.display()));
        if exists { error.with_hint("choose another file name: existing files are not overwritten") } else { error }
    })
}
