//! Keys and signatures in the format of Nix (`src/libutil/signature/local-keys.cc`): a name, a colon, and base64.

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::{
    KEYPAIR_LENGTH, PUBLIC_KEY_LENGTH, SECRET_KEY_LENGTH, SIGNATURE_LENGTH, Signature, Signer, SigningKey, VerifyingKey,
};
use nar_pack::error::{Error, Result};
use zeroize::Zeroizing;

/// Base64 of public keys and signatures, which Nix also reads without the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Maximum size of a decoded secret key in bytes, including the bytes by which base64 decoding may exceed it.
const MAX_DECODED_SIZE: usize = KEYPAIR_LENGTH + 2;
/// The hint for a secret key in place of a public one.
const SECRET_KEY_HINT: &str = "this is a secret key: pass the public key, which 'cache-sign public-key' prints";

/// A secret key. Its bytes are wiped from memory when it is dropped; `Debug` prints only its name.
pub struct SecretKey {
    name: String,
    /// Boxed, because a vector of keys that grows would leave unwiped copies in memory.
    key: Box<SigningKey>,
}

/// A public key, displayed as `NAME:BASE64`.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl SecretKey {
    /// Generates a new key.
    ///
    /// # Errors
    /// Refuses a name that Nix cannot parse, in a key or in nix.conf. Fails if the system provides no random bytes.
    pub fn generate(name: &str) -> Result<Self> {
        check_name(name)?;
        check_new_name(name)?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())
            .map_err(|error| Error::failed(format!("cannot generate random bytes: {error}")))?;
        Ok(Self { name: name.to_owned(), key: Box::new(SigningKey::from_bytes(&seed)) })
    }

    /// Parses `NAME:BASE64`, where the 64 bytes are the secret half and the public half. Error messages never contain
    /// the key.
    ///
    /// # Errors
    /// Refuses anything else, and a public half that does not match the secret half.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, false)
    }

    /// Parses a key like [`SecretKey::parse`], and also accepts the 32 bytes of the secret half alone (the Ed25519
    /// seed). A public key has the same form, and a signature made with a public key as the seed is worthless because
    /// anyone can make it, so use this only when the user states that the key is secret.
    ///
    /// # Errors
    /// The errors of [`SecretKey::parse`].
    pub fn parse_allowing_seed(text: &str) -> Result<Self> {
        Self::parse_with(text, true)
    }

    fn parse_with(text: &str, allow_seed: bool) -> Result<Self> {
        let (name, digits) = split(text, "secret key")?;
        let invalid = |reason: String| Error::refused(format!("invalid secret key {name:?}: {reason}"));
        let wrong_size = |size: &str| invalid(format!("expected {KEYPAIR_LENGTH} bytes, found {size}"));
        if digits.len() > MAX_DECODED_SIZE.div_ceil(3) * 4 {
            return Err(wrong_size("more"));
        }
        let mut bytes = Zeroizing::new([0; MAX_DECODED_SIZE]);
        let size =
            BASE64_STANDARD.decode_slice(digits, bytes.as_mut()).map_err(|_| invalid("not valid base64".to_owned()))?;
        let decoded = &bytes[..size];
        let key = if let Ok(pair) = <&[u8; KEYPAIR_LENGTH]>::try_from(decoded) {
            SigningKey::from_keypair_bytes(pair)
                .map_err(|_| invalid("its public half does not match its secret half".to_owned()))?
        } else if let Ok(secret) = <&[u8; SECRET_KEY_LENGTH]>::try_from(decoded) {
            if !allow_seed {
                let error = wrong_size(&format!("{size} bytes"));
                return Err(
                    error.with_hint("pass --seed if this is the secret half alone; a public key also has 32 bytes")
                );
            }
            SigningKey::from_bytes(secret)
        } else {
            return Err(wrong_size(&format!("{size} bytes")));
        };
        Ok(Self { name: name.to_owned(), key: Box::new(key) })
    }

    /// Returns `NAME:BASE64`, to be written to the key file and nowhere else.
    #[must_use]
    pub fn to_file_text(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(self.key.to_keypair_bytes());
        let digits = Zeroizing::new(BASE64_STANDARD.encode(pair.as_slice()));
        // Allocates the whole size at once, because a string that grows would leave unwiped copies in memory.
        let mut text = Zeroizing::new(String::with_capacity(self.name.len() + 1 + digits.len()));
        text.push_str(&self.name);
        text.push(':');
        text.push_str(&digits);
        text
    }

    /// Returns the public key of this secret key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs a fingerprint and returns the signature as `NAME:BASE64`.
    #[must_use]
    pub fn sign(&self, fingerprint: &str) -> String {
        format!("{}:{}", self.name, BASE64_STANDARD.encode(self.key.sign(fingerprint.as_bytes()).to_bytes()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

impl PublicKey {
    /// Parses `NAME:BASE64`, where the base64 text is 32 bytes.
    ///
    /// # Errors
    /// Refuses anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, digits) = split(text, "public key")?;
        let invalid = |reason: String| Error::refused(format!("invalid public key {name:?}: {reason}"));
        let bytes = BASE64.decode(digits).map_err(|_| invalid("not valid base64".to_owned()))?;
        let bytes: &[u8; PUBLIC_KEY_LENGTH] = bytes.as_slice().try_into().map_err(|_| {
            let error = invalid(format!("expected {PUBLIC_KEY_LENGTH} bytes, found {} bytes", bytes.len()));
            if bytes.len() == KEYPAIR_LENGTH { error.with_hint(SECRET_KEY_HINT) } else { error }
        })?;
        Self::from_bytes(name, bytes)
    }

    /// Creates a public key from its 32 bytes.
    ///
    /// # Errors
    /// Refuses a name that Nix cannot parse, and bytes that are not a key.
    pub fn from_bytes(name: &str, bytes: &[u8; PUBLIC_KEY_LENGTH]) -> Result<Self> {
        check_name(name)?;
        let not_a_point = |_| Error::refused(format!("invalid public key {name:?}: not a point on the curve"));
        Ok(Self { name: name.to_owned(), key: VerifyingKey::from_bytes(bytes).map_err(not_a_point)? })
    }

    /// Returns a signature by this key, made elsewhere, as `NAME:BASE64`. It may be invalid.
    #[must_use]
    pub fn signature_text(&self, signature: &[u8; SIGNATURE_LENGTH]) -> String {
        format!("{}:{}", self.name, BASE64_STANDARD.encode(signature))
    }

    /// Returns the name of the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether both are the same key, regardless of their names.
    #[must_use]
    pub fn is_same_key(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Whether `signature` (`NAME:BASE64`) is a valid signature of `fingerprint` by this key.
    #[must_use]
    pub fn verifies(&self, fingerprint: &str, signature: &str) -> bool {
        let Some(digits) = signature.strip_prefix(self.name.as_str()).and_then(|rest| rest.strip_prefix(':')) else {
            return false;
        };
        let bytes: Option<[u8; SIGNATURE_LENGTH]> = BASE64.decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .is_some_and(|bytes| self.key.verify_strict(fingerprint.as_bytes(), &Signature::from_bytes(&bytes)).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64_STANDARD.encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns the name of the key that made `signature` (`NAME:BASE64`), according to the signature.
#[must_use]
pub fn key_name(signature: &str) -> &str {
    signature.split_once(':').map_or(signature, |(name, _)| name)
}

/// Splits a key into its name and its base64 digits; `what` is the kind of key in errors.
fn split<'a>(text: &'a str, what: &str) -> Result<(&'a str, &'a str)> {
    // Some editors write a byte order mark.
    let text = text.trim_start_matches('\u{feff}').trim();
    let (name, digits) =
        text.split_once(':').ok_or_else(|| Error::refused(format!("invalid {what}: expected NAME:BASE64")))?;
    check_name(name)?;
    if digits.contains(char::is_whitespace) {
        return Err(Error::refused(format!(
            "invalid {what} {name:?}: expected one key on one line, found whitespace in it"
        )));
    }
    Ok((name, digits))
}

/// Checks the name of a new key. In nix.conf, a number sign begins a comment.
fn check_new_name(name: &str) -> Result {
    if name.contains(|c: char| !c.is_ascii_graphic() || c == '#') {
        return Err(Error::refused("the name of a new key must consist of visible ASCII characters other than #"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result {
    if name.is_empty() || name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
        return Err(Error::refused("a key name must not be empty or contain colons, whitespace or control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_read_back_from_its_file_makes_the_same_signatures() {
        let secret = SecretKey::generate("cache.example.org-1").unwrap();
        let read_back = SecretKey::parse(&secret.to_file_text()).unwrap();
        let public = PublicKey::parse(&secret.public().to_string()).unwrap();
        let signature = read_back.sign("1;x");
        assert!(public.verifies("1;x", &signature));
        assert!(!public.verifies("1;y", &signature));
        assert!(!public.verifies("1;x", &signature.replace("-1:", "-2:")));
        assert_eq!(secret.sign("1;x"), signature);
    }

    #[test]
    fn base64_may_lack_its_padding_as_in_nix() {
        let secret = SecretKey::generate("k").unwrap();
        let public = PublicKey::parse(secret.public().to_string().trim_end_matches('=')).unwrap();
        assert!(public.verifies("1;x", secret.sign("1;x").trim_end_matches('=')));
    }

    #[test]
    fn the_secret_half_alone_is_the_same_key() {
        let secret = SecretKey::generate("k").unwrap();
        let text = format!("k:{}\n", BASE64_STANDARD.encode(secret.key.to_bytes()));
        let half = SecretKey::parse_allowing_seed(&text).unwrap();
        assert!(SecretKey::parse(&text).unwrap_err().hint().unwrap().contains("--seed"));
        assert_eq!((half.public(), half.sign("1;x")), (secret.public(), secret.sign("1;x")));
        assert_eq!(*half.to_file_text(), *secret.to_file_text());
    }

    #[test]
    fn every_other_length_is_refused() {
        for size in (0..=70).filter(|size| ![32, 64].contains(size)).chain([3000]) {
            let error = SecretKey::parse(&format!("k:{}", BASE64_STANDARD.encode(vec![7; size]))).unwrap_err();
            assert!(error.is_refusal() && error.message().contains("expected 64"), "{size}: {error}");
        }
    }

    #[test]
    fn a_public_half_of_another_key_is_refused() {
        let [a, b] = ["a", "b"].map(|name| SecretKey::generate(name).unwrap());
        let mixed = [&a.key.to_bytes()[..], b.key.verifying_key().as_bytes()].concat();
        let text = format!("a:{}", BASE64_STANDARD.encode(mixed));
        assert!(SecretKey::parse(&text).unwrap_err().message().contains("does not match"));
    }

    #[test]
    fn a_malformed_key_is_refused_and_not_quoted() {
        let secret = SecretKey::generate("k").unwrap().to_file_text();
        for text in ["", "k", ":", "k:", "k:!", "k:AAAA", &secret[..secret.len() - 4], &secret[2..], "a b:AAAA"] {
            let error = SecretKey::parse(text).unwrap_err();
            assert!(error.is_refusal() && !error.message().contains(&secret[10..40]), "{error}");
            assert!(PublicKey::parse(text).unwrap_err().is_refusal());
        }
    }
}
