//! Keys and signatures, in the format of Nix (`src/libutil/signature/local-keys.cc`): a name, a colon, and base 64.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::{
    KEYPAIR_LENGTH, PUBLIC_KEY_LENGTH, SECRET_KEY_LENGTH, SIGNATURE_LENGTH, Signature, Signer, SigningKey, VerifyingKey,
};
use nar_pack::error::{Error, Result};
use zeroize::Zeroizing;

/// Longest secret key once decoded, with what base 64 rounds up.
const MOST_DECODED: usize = KEYPAIR_LENGTH + 2;

/// A secret key; its bytes are wiped from memory when it is dropped, and it cannot be displayed.
pub struct SecretKey {
    name: String,
    /// In a place of its own: a list of keys that grows would leave copies behind.
    key: Box<SigningKey>,
}

/// A public key; displayed as `NAME:BASE64`.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl SecretKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// Refuses a name that Nix could not read back; fails when the system gives no random bytes.
    pub fn generate(name: &str) -> Result<Self> {
        check_name(name)?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|error| Error::failed(format!("no random bytes: {error}")))?;
        Ok(Self { name: name.to_owned(), key: Box::new(SigningKey::from_bytes(&seed)) })
    }

    /// Parses `NAME:BASE64` of the 64 bytes of secret and public half. Messages never contain the key.
    ///
    /// # Errors
    /// Refuses anything else, and a public half that does not belong to the secret half.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_size(text, false)
    }

    /// As [`SecretKey::parse`], and takes the 32 bytes of the secret half alone too. A public key has the same form, and
    /// whoever signed with one would sign with what everybody knows: only for those who say that it is a secret.
    ///
    /// # Errors
    /// As [`SecretKey::parse`].
    pub fn parse_seed(text: &str) -> Result<Self> {
        Self::parse_size(text, true)
    }

    fn parse_size(text: &str, seed: bool) -> Result<Self> {
        let (name, digits) = split(text, "secret key")?;
        let wrong = |why: String| Error::refused(format!("secret key {name:?}: {why}"));
        let wrong_size = |size: &str| wrong(format!("{size} bytes long, expected {KEYPAIR_LENGTH}"));
        if digits.len() > MOST_DECODED.div_ceil(3) * 4 {
            return Err(wrong_size("too many"));
        }
        let mut bytes = Zeroizing::new([0; MOST_DECODED]);
        let size = BASE64_STANDARD.decode_slice(digits, bytes.as_mut()).map_err(|_| wrong("not base 64".to_owned()))?;
        let decoded = &bytes[..size];
        let key = if let Ok(pair) = <&[u8; KEYPAIR_LENGTH]>::try_from(decoded) {
            SigningKey::from_keypair_bytes(pair)
                .map_err(|_| wrong("its public half belongs to another key".to_owned()))?
        } else if let Ok(secret) = <&[u8; SECRET_KEY_LENGTH]>::try_from(decoded) {
            if !seed {
                return Err(wrong(format!(
                    "{size} bytes long: a public key, or the secret half alone, which takes --seed; expected {KEYPAIR_LENGTH}"
                )));
            }
            SigningKey::from_bytes(secret)
        } else {
            return Err(wrong_size(&size.to_string()));
        };
        Ok(Self { name: name.to_owned(), key: Box::new(key) })
    }

    /// `NAME:BASE64`, for the file that holds the key and for nothing else.
    #[must_use]
    pub fn to_file_text(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(self.key.to_keypair_bytes());
        let digits = Zeroizing::new(BASE64_STANDARD.encode(pair.as_slice()));
        // Of its whole size from the beginning: text that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(self.name.len() + 1 + digits.len()));
        text.push_str(&self.name);
        text.push(':');
        text.push_str(&digits);
        text
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs a fingerprint: `NAME:BASE64`.
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
    /// Parses `NAME:BASE64` of 32 bytes.
    ///
    /// # Errors
    /// Refuses anything else, and names the key.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, digits) = split(text, "public key")?;
        let wrong = |why: String| Error::refused(format!("public key {name:?}: {why}"));
        let bytes = BASE64_STANDARD.decode(digits).map_err(|_| wrong("not base 64".to_owned()))?;
        let bytes: &[u8; PUBLIC_KEY_LENGTH] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| wrong(format!("{} bytes long, expected {PUBLIC_KEY_LENGTH}", bytes.len())))?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| wrong("not a point of the curve".to_owned()))?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether both are the same key, whatever their names.
    #[must_use]
    pub fn same_point(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Whether `signature` (`NAME:BASE64`) is one of this key over `fingerprint`.
    #[must_use]
    pub fn verifies(&self, fingerprint: &str, signature: &str) -> bool {
        let Some(digits) = signature.strip_prefix(self.name.as_str()).and_then(|rest| rest.strip_prefix(':')) else {
            return false;
        };
        let bytes: Option<[u8; SIGNATURE_LENGTH]> =
            BASE64_STANDARD.decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
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

/// The name of the key that `signature` (`NAME:BASE64`) says it is by.
#[must_use]
pub fn signer(signature: &str) -> &str {
    signature.split_once(':').map_or(signature, |(name, _)| name)
}

fn split<'a>(text: &'a str, what: &str) -> Result<(&'a str, &'a str)> {
    let (name, digits) =
        text.trim().split_once(':').ok_or_else(|| Error::refused(format!("not a {what}: expected NAME:BASE64")))?;
    check_name(name)?;
    Ok((name, digits))
}

fn check_name(name: &str) -> Result {
    if name.is_empty() || name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
        return Err(Error::refused("the name of a key must not be empty, nor have colons or white space in it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_its_signatures_hold() {
        let secret = SecretKey::generate("cache.example.org-1").unwrap();
        let again = SecretKey::parse(&secret.to_file_text()).unwrap();
        let public = PublicKey::parse(&secret.public().to_string()).unwrap();
        let signature = again.sign("1;x");
        assert!(public.verifies("1;x", &signature));
        assert!(!public.verifies("1;y", &signature));
        assert!(!public.verifies("1;x", &signature.replace("-1:", "-2:")));
        assert_eq!(secret.sign("1;x"), signature);
    }

    #[test]
    fn the_secret_half_alone_is_the_same_key() {
        let secret = SecretKey::generate("k").unwrap();
        let text = format!("k:{}\n", BASE64_STANDARD.encode(secret.key.to_bytes()));
        let half = SecretKey::parse_seed(&text).unwrap();
        assert!(SecretKey::parse(&text).unwrap_err().message().contains("--seed"));
        assert_eq!((half.public(), half.sign("1;x")), (secret.public(), secret.sign("1;x")));
        assert_eq!(*half.to_file_text(), *secret.to_file_text());
    }

    #[test]
    fn every_other_length_is_refused() {
        for size in (0..=70).filter(|size| ![32, 64].contains(size)).chain([3000]) {
            let failure = SecretKey::parse(&format!("k:{}", BASE64_STANDARD.encode(vec![7; size]))).unwrap_err();
            assert!(failure.is_refusal() && failure.message().contains("expected 64"), "{size}: {failure}");
        }
    }

    #[test]
    fn a_public_half_of_another_key_is_refused() {
        let [a, b] = ["a", "b"].map(|name| SecretKey::generate(name).unwrap());
        let mixed = [&a.key.to_bytes()[..], b.key.verifying_key().as_bytes()].concat();
        let text = format!("a:{}", BASE64_STANDARD.encode(mixed));
        assert!(SecretKey::parse(&text).unwrap_err().message().contains("another key"));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let secret = SecretKey::generate("k").unwrap().to_file_text();
        for text in ["", "k", ":", "k:", "k:!", "k:AAAA", &secret[..secret.len() - 4], &secret[2..], "a b:AAAA"] {
            let failure = SecretKey::parse(text).unwrap_err();
            assert!(failure.is_refusal() && !failure.message().contains(&secret[10..40]), "{failure}");
            assert!(PublicKey::parse(text).unwrap_err().is_refusal());
        }
    }
}
