//! Signs the narinfos of a stream and passes everything else through unchanged. Signatures that are already there stay
//! byte for byte, and a narinfo that a key has signed is not signed by it again.

use std::io::BufRead;

use nar_pack::error::Result;
use nar_pack::process;
use nar_pack::stdio;
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::{self, Object};
use narinfo_gen::narinfo::{self, NarInfo, TextWriter};

use crate::input::{Input, parse_narinfo};
use crate::key_source::SecretKeySources;
use crate::keys::{PublicKey, SecretKey, key_name};
use crate::run::TOOL;

/// Options of [`sign`].
#[derive(Debug)]
pub struct SignOptions {
    /// The keys to sign with.
    pub keys: SecretKeySources,
    /// Names of the keys whose signatures are removed first.
    pub replace: Vec<String>,
    /// The store directory of the narinfos.
    pub store_dir: StoreDir,
}

/// Reads narinfo text or a cache archive from standard input and writes it to standard output with a signature of each
/// key on each narinfo.
///
/// # Errors
/// The errors of [`SecretKeySources::read`]. Refuses a malformed or truncated stream.
pub fn sign(options: &SignOptions) -> Result {
    let mut signer = NarInfoSigner::new(options.keys.read()?, &options.replace);
    match Input::open()? {
        Input::Text(input) => sign_text(input, &mut signer, &options.store_dir)?,
        Input::Archive(input) => sign_archive(input, &mut signer, &options.store_dir)?,
    }
    signer.warn_about_unused_names();
    Ok(())
}

fn sign_text(input: impl BufRead, signer: &mut NarInfoSigner<'_>, store_dir: &StoreDir) -> Result {
    let mut text = TextWriter::new(stdio::stdout(None)?);
    let result = narinfo::read_text(input, store_dir, |narinfo, more| text.write(&signer.sign(narinfo), more));
    result.inspect_err(|_| text.mark_truncated())?;
    text.into_inner().finish()
}

fn sign_archive(input: impl BufRead, signer: &mut NarInfoSigner<'_>, store_dir: &StoreDir) -> Result {
    let mut out = archive::Writer::new(stdio::stdout(Some("the cache archive"))?);
    archive::read(input, |mut member| match member.object {
        Object::Narinfo(_) => out.narinfo(&signer.sign(parse_narinfo(&mut member, store_dir)?)),
        _ => out.member(&member.key, member.size, member.body),
    })?;
    out.finish()?.finish()
}

/// Signs narinfos and counts the signatures that it removed.
struct NarInfoSigner<'a> {
    keys: Vec<(PublicKey, SecretKey)>,
    /// Key names whose signatures are removed, each with the number of signatures removed so far.
    replaced: Vec<(&'a str, u64)>,
}

impl<'a> NarInfoSigner<'a> {
    fn new(keys: Vec<SecretKey>, replace: &'a [String]) -> Self {
        Self {
            keys: keys.into_iter().map(|key| (key.public(), key)).collect(),
            replaced: replace.iter().map(|name| (name.as_str(), 0)).collect(),
        }
    }

    fn sign(&mut self, mut narinfo: NarInfo) -> NarInfo {
        narinfo.signatures.retain(|signature| {
            let replaced = self.replaced.iter_mut().find(|(name, _)| *name == key_name(signature));
            replaced.map(|(_, count)| *count += 1).is_none()
        });
        let fingerprint = narinfo.fingerprint();
        for (public, secret) in &self.keys {
            // Compares by verification, because another tool may have made a different valid signature with the key.
            if !narinfo.signatures.iter().any(|signature| public.verifies(&fingerprint, signature)) {
                narinfo.add_signature(secret.sign(&fingerprint));
            }
        }
        narinfo
    }

    fn warn_about_unused_names(&self) {
        for (name, _) in self.replaced.iter().filter(|(_, count)| *count == 0) {
            process::print_message(TOOL, format!("warning: --replace {name:?}: no signature by a key of this name"));
        }
    }
}
