//! Decides whether a narinfo is trusted: enough different trusted keys have signed it, or its path is content-addressed
//! by its NAR hash and needs no signature. Whether the NAR matches the narinfo is checked elsewhere.

use std::path::Path;

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::read_text;
use narinfo_gen::content_address::is_content_addressed;
use narinfo_gen::narinfo::NarInfo;

use crate::cli::{TrustArgs, TrustedKeyArgs};
use crate::keys::{PublicKey, key_name};
use crate::nix_conf::Settings;

/// Maximum size of a file of public keys in bytes.
const MAX_KEY_FILE_SIZE: u64 = 1 << 20;
/// Maximum number of key names in the message about a narinfo without a trusted signature.
const MAX_NAMES_IN_MESSAGE: usize = 8;

/// Trusted keys, and how many of them must have signed.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    keys: Vec<PublicKey>,
    threshold: usize,
}

/// The result of [`TrustedKeys::check`].
#[derive(Debug)]
pub struct TrustCheck<'a> {
    /// The trusted keys that have signed the narinfo, each once.
    pub signers: Vec<&'a PublicKey>,
    /// Whether the store path is content-addressed by its NAR hash, so that it needs no signature.
    pub is_content_addressed: bool,
    /// The required number of signers.
    pub threshold: usize,
}

impl TrustCheck<'_> {
    /// Whether the narinfo is trusted.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.is_content_addressed || self.signers.len() >= self.threshold
    }
}

/// The status of one signature of a narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureStatus {
    /// A valid signature by a trusted key.
    Valid,
    /// It names a trusted key, but is not a valid signature by that key.
    Wrong,
    /// It names a key that is not trusted.
    UnknownKey,
}

impl SignatureStatus {
    /// Returns its name in the JSON report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Wrong => "wrong",
            Self::UnknownKey => "unknown-key",
        }
    }
}

/// Reads the public keys given on the command line, in their order.
///
/// # Errors
/// Refuses malformed keys in files; fails if a file cannot be read. A usage error for a malformed key in a value, and for a
/// value or a file without a key: as if the option were not given, other keys would be trusted.
pub fn read_public_keys(args: &TrustedKeyArgs) -> Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for text in &args.trusted_public_keys {
        if text.trim().is_empty() {
            let error = Error::usage("--trusted-public-key: expected a public key, found an empty value");
            return Err(error.with_hint("check that the variable with the key is set"));
        }
        // One argument may contain several keys, as in nix.conf.
        for key in text.split_whitespace() {
            let invalid = |error: Error| {
                let usage = Error::usage(format!("--trusted-public-key: {}", error.message()));
                error.hint().into_iter().fold(usage, Error::with_hint)
            };
            keys.push(PublicKey::parse(key).map_err(invalid)?);
        }
    }
    for file in &args.trusted_public_key_files {
        let count_before = keys.len();
        for key in read_key_file(file)?.split_whitespace() {
            keys.push(PublicKey::parse(key).context(|| file.display().to_string())?);
        }
        if keys.len() == count_before {
            return Err(Error::usage(format!("{}: the file contains no public key", file.display())));
        }
    }
    Ok(keys)
}

fn read_key_file(path: &Path) -> Result<String> {
    let action = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).map_err(Error::from).context(action)?;
    read_text(&mut file, MAX_KEY_FILE_SIZE).context(action)
}

impl TrustedKeys {
    /// Reads the keys that the command line gives, or those of nix.conf if it gives none. A key that is given under two
    /// names counts once towards the threshold.
    ///
    /// # Errors
    /// Refuses malformed keys. A usage error if there are fewer keys than the threshold requires.
    pub fn from_cli(args: &TrustArgs) -> Result<Self> {
        let given = read_public_keys(&args.keys)?;
        let mut keys = if given.is_empty() || args.nix_conf.is_some() {
            let file = args.nix_conf.as_deref();
            let source = || file.map_or_else(|| "nix.conf".to_owned(), |file| file.display().to_string());
            Settings::read(file)?.public_keys().context(source)?
        } else {
            Vec::new()
        };
        keys.extend(given);
        let mut distinct: Vec<PublicKey> = Vec::new();
        for key in keys {
            if !distinct.contains(&key) {
                distinct.push(key);
            }
        }
        let is_first = |i: usize, key: &PublicKey| !distinct[..i].iter().any(|earlier| earlier.is_same_key(key));
        let count = distinct.iter().enumerate().filter(|(i, key)| is_first(*i, key)).count();
        let threshold = args.threshold as usize;
        if count == 0 {
            return Err(Error::usage("there are no trusted keys").with_hint("pass --trusted-public-key KEY"));
        }
        if count < threshold {
            let error = Error::usage(format!(
                "the threshold is {threshold}, but the number of different trusted keys is {count}"
            ));
            return Err(error.with_hint("lower --threshold, or give more keys with --trusted-public-key"));
        }
        Ok(Self { keys: distinct, threshold })
    }

    /// Determines which trusted keys have signed the narinfo.
    #[must_use]
    pub fn check(&self, narinfo: &NarInfo) -> TrustCheck<'_> {
        let fingerprint = narinfo.fingerprint();
        let mut signers: Vec<&PublicKey> = Vec::new();
        for key in &self.keys {
            let is_counted = signers.iter().any(|signer| signer.is_same_key(key));
            if !is_counted && narinfo.signatures.iter().any(|signature| key.verifies(&fingerprint, signature)) {
                signers.push(key);
            }
        }
        TrustCheck { signers, is_content_addressed: is_content_addressed(narinfo), threshold: self.threshold }
    }

    /// Determines the status of `signature`, one of the signatures of the narinfo.
    #[must_use]
    pub fn signature_status(&self, narinfo: &NarInfo, signature: &str) -> SignatureStatus {
        self.status_of(&narinfo.fingerprint(), signature)
    }

    /// Determines the status of a signature of a fingerprint.
    #[must_use]
    pub fn status_of(&self, fingerprint: &str, signature: &str) -> SignatureStatus {
        let mut named = self.keys.iter().filter(|key| key.name() == key_name(signature)).peekable();
        if named.peek().is_none() {
            return SignatureStatus::UnknownKey;
        }
        if named.any(|key| key.verifies(fingerprint, signature)) {
            SignatureStatus::Valid
        } else {
            SignatureStatus::Wrong
        }
    }

    /// Requires that the narinfo is trusted.
    ///
    /// # Errors
    /// Refuses a narinfo that is not trusted; the message names the store path and the trusted keys that signed it.
    pub fn require(&self, narinfo: &NarInfo) -> Result {
        let check = self.check(narinfo);
        if check.is_trusted() {
            return Ok(());
        }
        let path = narinfo.full_path();
        if narinfo.signatures.is_empty() {
            return Err(Error::refused(format!("{path}: not signed")));
        }
        let names: Vec<&str> = check.signers.iter().map(|key| key.name()).collect();
        let is_wrong = |signature: &&String| self.signature_status(narinfo, signature) == SignatureStatus::Wrong;
        if let (true, Some(wrong)) = (names.is_empty(), narinfo.signatures.iter().find(is_wrong)) {
            let name = key_name(wrong);
            return Err(Error::refused(format!(
                "{path}: its signature by {name} does not verify with the trusted key"
            )));
        }
        if names.is_empty() {
            let signed_by = signature_names(narinfo);
            let error = Error::refused(format!("{path}: not signed by a trusted key (signatures by: {signed_by})"));
            return Err(error.with_hint("trust the key with --trusted-public-key, or in nix.conf"));
        }
        let (count, names) = (names.len(), names.join(", "));
        Err(Error::refused(format!("{path}: signed by {count} of {} required trusted keys ({names})", self.threshold)))
    }
}

fn signature_names(narinfo: &NarInfo) -> String {
    let names = narinfo.signatures.iter().map(|signature| key_name(signature));
    names.take(MAX_NAMES_IN_MESSAGE).collect::<Vec<_>>().join(", ")
}
