//! Deciding whether a narinfo is to be trusted.

use std::path::Path;

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::read_text;
use narinfo_gen::content_address::is_content_addressed;
use narinfo_gen::narinfo::NarInfo;

use crate::cli::{PublicKeys, Trust};
use crate::keys::{PublicKey, signer};
use crate::nix_conf::Settings;

/// Longest file of public keys that is read, in bytes.
const MAX_KEY_FILE: u64 = 1 << 20;

/// Trusted keys, and how many of them must have signed.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    keys: Vec<PublicKey>,
    threshold: usize,
}

/// What is known of the signatures of one narinfo.
#[derive(Debug)]
pub struct Judgement<'a> {
    /// The trusted keys that signed it, each once.
    pub signers: Vec<&'a PublicKey>,
    /// Whether its name follows from its contents, so that it needs no signature.
    pub proves_itself: bool,
    /// How many signers it needs.
    pub threshold: usize,
}

impl Judgement<'_> {
    /// Whether the narinfo is to be trusted.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.proves_itself || self.signers.len() >= self.threshold
    }
}

/// What one signature is worth to somebody who trusts some keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A trusted key made it, of this narinfo.
    Valid,
    /// It has the name of a trusted key, which did not make it of this narinfo.
    Wrong,
    /// No trusted key has its name.
    UnknownKey,
}

impl Verdict {
    /// The word in a report.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Wrong => "wrong",
            Self::UnknownKey => "unknown-key",
        }
    }
}

/// The public keys that the command line names, in its order.
///
/// # Errors
/// Refuses what is no key; fails when a file cannot be read.
pub fn named_keys(named: &PublicKeys) -> Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for text in &named.trusted_public_keys {
        // A value may hold several, as in nix.conf.
        for key in text.split_whitespace() {
            keys.push(PublicKey::parse(key)?);
        }
    }
    for file in &named.trusted_public_key_files {
        let before = keys.len();
        for key in read_keys(file)?.split_whitespace() {
            keys.push(PublicKey::parse(key).context(|| file.display().to_string())?);
        }
        if keys.len() == before {
            return Err(Error::refused(format!("{}: there is no public key in it", file.display())));
        }
    }
    Ok(keys)
}

fn read_keys(file: &Path) -> Result<String> {
    let at = || format!("reading {}", file.display());
    read_text(&mut std::fs::File::open(file).map_err(Error::from).context(at)?, MAX_KEY_FILE, "the file of public keys")
        .context(at)
}

impl TrustedKeys {
    /// The keys of the command line, or of nix.conf where it names none. The same key under two names counts once.
    ///
    /// # Errors
    /// Refuses malformed keys; a usage failure when there are fewer keys than must sign.
    pub fn from_cli(trust: &Trust) -> Result<Self> {
        let named = named_keys(&trust.named)?;
        let mut keys = if named.is_empty() || trust.nix_conf.is_some() {
            Settings::read(trust.nix_conf.as_deref())?.public_keys()?
        } else {
            Vec::new()
        };
        keys.extend(named);
        let mut distinct: Vec<PublicKey> = Vec::new();
        for key in keys {
            if !distinct.contains(&key) {
                distinct.push(key);
            }
        }
        let threshold = trust.threshold as usize;
        let count =
            distinct.iter().enumerate().filter(|(i, key)| !distinct[..*i].iter().any(|k| k.same_point(key))).count();
        if count < threshold {
            return Err(Error::failed(format!("{threshold} trusted keys must sign, but only {count} are given")));
        }
        Ok(Self { keys: distinct, threshold })
    }

    /// Which trusted keys signed the narinfo, and whether that is enough.
    #[must_use]
    pub fn judge(&self, narinfo: &NarInfo) -> Judgement<'_> {
        let fingerprint = narinfo.fingerprint();
        let mut signers: Vec<&PublicKey> = Vec::new();
        for key in &self.keys {
            let counted = signers.iter().any(|signer| signer.same_point(key));
            if !counted && narinfo.signatures.iter().any(|signature| key.verifies(&fingerprint, signature)) {
                signers.push(key);
            }
        }
        Judgement { signers, proves_itself: is_content_addressed(narinfo), threshold: self.threshold }
    }

    /// What `signature`, one of the narinfo's, is worth.
    #[must_use]
    pub fn verdict(&self, narinfo: &NarInfo, signature: &str) -> Verdict {
        let mut named = self.keys.iter().filter(|key| key.name() == signer(signature)).peekable();
        if named.peek().is_none() {
            return Verdict::UnknownKey;
        }
        let fingerprint = narinfo.fingerprint();
        if named.any(|key| key.verifies(&fingerprint, signature)) { Verdict::Valid } else { Verdict::Wrong }
    }

    /// Passes a narinfo that enough trusted keys have signed, or that proves itself by its content address.
    ///
    /// # Errors
    /// Refuses any other, and says which trusted keys signed it.
    pub fn require(&self, narinfo: &NarInfo) -> Result {
        let judgement = self.judge(narinfo);
        if judgement.holds() {
            return Ok(());
        }
        let path = narinfo.full_path();
        let names: Vec<&str> = judgement.signers.iter().map(|key| key.name()).collect();
        Err(Error::refused(match (narinfo.signatures.len(), names.as_slice()) {
            (0, _) => format!("{path}: it is not signed"),
            (_, []) => format!("{path}: none of its signatures ({}) is by a trusted key", signature_names(narinfo)),
            (_, names) => format!(
                "{path}: signed by {} of the trusted keys ({}), but {} must sign",
                names.len(),
                names.join(", "),
                self.threshold
            ),
        }))
    }
}

fn signature_names(narinfo: &NarInfo) -> String {
    narinfo.signatures.iter().map(|signature| signer(signature)).take(8).collect::<Vec<_>>().join(", ")
}
