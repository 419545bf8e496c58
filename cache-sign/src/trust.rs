//! Deciding whether a narinfo is to be trusted.

use nar_pack::stage::{Failure, Outcome};
use narinfo_gen::content_address::proves_itself;
use narinfo_gen::narinfo::NarInfo;

use crate::cli::Trust;
use crate::keys::PublicKey;
use crate::nix_conf;

/// Trusted keys, and how many of them must have signed.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    keys: Vec<PublicKey>,
    threshold: usize,
}

impl TrustedKeys {
    /// The keys of the command line, or of nix.conf where it names none. The same key under two names counts once.
    ///
    /// # Errors
    /// Refuses malformed keys; a usage failure when there are fewer keys than must sign.
    pub fn from_cli(trust: &Trust) -> Outcome<Self> {
        let mut keys = if trust.trusted_public_keys.is_empty() || trust.nix_conf.is_some() {
            nix_conf::trusted_public_keys(trust.nix_conf.as_deref())?
        } else {
            Vec::new()
        };
        for text in &trust.trusted_public_keys {
            // A value may hold several, as in nix.conf.
            for key in text.split_whitespace() {
                keys.push(PublicKey::parse(key)?);
            }
        }
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
            return Err(Failure::failed(format!("{threshold} trusted keys must sign, but only {count} are given")));
        }
        Ok(Self { keys: distinct, threshold })
    }

    /// Passes a narinfo that enough trusted keys have signed, or that proves itself by its content address.
    ///
    /// # Errors
    /// Refuses any other, and says which trusted keys signed it.
    pub fn require(&self, narinfo: &NarInfo) -> Outcome {
        if proves_itself(narinfo) {
            return Ok(());
        }
        let fingerprint = narinfo.fingerprint();
        let mut signers: Vec<&PublicKey> = Vec::new();
        for key in &self.keys {
            let counted = signers.iter().any(|signer| signer.same_point(key));
            if !counted && narinfo.signatures.iter().any(|signature| key.verifies(&fingerprint, signature)) {
                signers.push(key);
            }
        }
        if signers.len() >= self.threshold {
            return Ok(());
        }
        let path = narinfo.full_path();
        let names: Vec<&str> = signers.iter().map(|key| key.name()).collect();
        Err(Failure::refused(match (narinfo.signatures.len(), names.as_slice()) {
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
    let names = narinfo.signatures.iter().map(|signature| signature.split(':').next().unwrap_or_default());
    names.take(8).collect::<Vec<_>>().join(", ")
}
