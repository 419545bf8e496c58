//! The messages of the SSH agent protocol (draft-ietf-sshm-ssh-agent) that are needed to sign with an Ed25519 key. Own code, because the client crates depend on `ssh-key` with every algorithm of SSH (RSA, three NIST
//! curves and a second ed25519-dalek), while a signature needs two requests.

use nar_pack::error::{Error, Result};

/// Maximum size of a message in bytes, in either direction: the limit of OpenSSH (`AGENT_MAX_LEN`).
pub const MAX_MESSAGE_SIZE: usize = 256 * 1024;
/// Maximum number of keys in an answer: the limit of OpenSSH (`MAX_AGENT_IDENTITIES`).
const MAX_IDENTITIES: u32 = 2048;
/// The name of the algorithm in keys and signatures (RFC 8709).
pub const ED25519: &str = "ssh-ed25519";

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// A key of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name of its algorithm.
    pub algorithm: String,
    /// The public key, if it is an Ed25519 key.
    pub ed25519: Option<[u8; 32]>,
    /// The comment.
    pub comment: String,
}

/// Returns the request for the keys of the agent, without its length.
#[must_use]
pub fn identities_request() -> Vec<u8> {
    vec![REQUEST_IDENTITIES]
}

/// Returns the request to sign `data` with an Ed25519 key, without its length.
#[must_use]
pub fn sign_request(key: &[u8; 32], data: &[u8]) -> Vec<u8> {
    let mut request = vec![SIGN_REQUEST];
    push_string(&mut request, &key_blob(key));
    push_string(&mut request, data);
    // No flags: they select hash functions of RSA.
    request.extend_from_slice(&0_u32.to_be_bytes());
    request
}

/// Parses the answer to [`identities_request`].
///
/// # Errors
/// Refuses a malformed message, and fails if the agent reports a failure.
pub fn parse_identities(message: &[u8]) -> Result<Vec<Identity>> {
    let mut fields = body(message, IDENTITIES_ANSWER, "list its keys")?;
    let count = fields.number()?;
    if count > MAX_IDENTITIES {
        return Err(malformed());
    }
    let mut identities = Vec::new();
    for _ in 0..count {
        let mut key = Fields(fields.string()?);
        let algorithm = text(key.string()?);
        let ed25519 = if algorithm == ED25519 { Some(key.last_array()?) } else { None };
        identities.push(Identity { algorithm, ed25519, comment: text(fields.string()?) });
    }
    fields.end()?;
    Ok(identities)
}

/// Parses the answer to [`sign_request`].
///
/// # Errors
/// Refuses a malformed message and a signature of another algorithm, and fails if the agent reports a failure.
pub fn parse_signature(message: &[u8]) -> Result<[u8; 64]> {
    let mut fields = body(message, SIGN_RESPONSE, "sign")?;
    let mut signature = Fields(fields.string()?);
    fields.end()?;
    if signature.string()? != ED25519.as_bytes() {
        return Err(Error::refused("the SSH agent made a signature that is not an ssh-ed25519 signature"));
    }
    signature.last_array()
}

/// Parses the line of a public key file of OpenSSH: the algorithm, the key in base64, and a comment, which may be absent.
///
/// # Errors
/// Refuses anything else, and a key of another algorithm.
pub fn parse_public_key_line(line: &str, decode: impl Fn(&str) -> Option<Vec<u8>>) -> Result<([u8; 32], String)> {
    let mut words = line.trim().splitn(3, [' ', '\t']);
    let (algorithm, digits) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if algorithm != ED25519 {
        let message = format!("expected a public key of OpenSSH that begins with {ED25519}");
        return Err(Error::refused(message));
    }
    let blob = decode(digits).ok_or_else(|| Error::refused("the key is not valid base64"))?;
    let mut fields = Fields(&blob);
    let is_ed25519 = fields.string()? == ED25519.as_bytes();
    let key = fields.last_array()?;
    if !is_ed25519 {
        return Err(Error::refused("the key is of another algorithm than its line states"));
    }
    Ok((key, words.next().unwrap_or_default().trim().to_owned()))
}

/// Returns the encoding of an Ed25519 public key (RFC 8709).
fn key_blob(key: &[u8; 32]) -> Vec<u8> {
    let mut blob = Vec::new();
    push_string(&mut blob, ED25519.as_bytes());
    push_string(&mut blob, key);
    blob
}

/// Appends a string: its length in four bytes, and its bytes. Requests are smaller than [`MAX_MESSAGE_SIZE`].
fn push_string(message: &mut Vec<u8>, bytes: &[u8]) {
    message.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(bytes);
}

/// Returns the fields of a message of type `expected`.
fn body<'a>(message: &'a [u8], expected: u8, action: &str) -> Result<Fields<'a>> {
    match message.split_first() {
        Some((&kind, rest)) if kind == expected => Ok(Fields(rest)),
        Some((&FAILURE, _)) => Err(Error::failed(format!("the SSH agent refused to {action}"))),
        _ => Err(malformed()),
    }
}

fn malformed() -> Error {
    Error::refused("malformed response from the SSH agent")
}

/// Text of another program; messages replace its control characters when they are printed.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The fields of a message that have not been read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(size).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32> {
        let bytes = self.take(4)?.try_into().map_err(|_| malformed())?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        let size = usize::try_from(self.number()?).map_err(|_| malformed())?;
        self.take(size)
    }

    /// Reads a string of `N` bytes after which nothing follows.
    fn last_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.string()?.try_into().map_err(|_| malformed())?;
        self.end()?;
        Ok(bytes)
    }

    fn end(&self) -> Result {
        if self.0.is_empty() { Ok(()) } else { Err(malformed()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn answer(identities: &[Identity]) -> Vec<u8> {
        let mut message = vec![IDENTITIES_ANSWER];
        message.extend_from_slice(&u32::try_from(identities.len()).unwrap().to_be_bytes());
        for identity in identities {
            let mut blob = Vec::new();
            push_string(&mut blob, identity.algorithm.as_bytes());
            push_string(&mut blob, identity.ed25519.as_ref().map_or(b"other", |key| key.as_slice()));
            push_string(&mut message, &blob);
            push_string(&mut message, identity.comment.as_bytes());
        }
        message
    }

    fn signature(algorithm: &str, bytes: &[u8]) -> Vec<u8> {
        let (mut inner, mut message) = (Vec::new(), vec![SIGN_RESPONSE]);
        push_string(&mut inner, algorithm.as_bytes());
        push_string(&mut inner, bytes);
        push_string(&mut message, &inner);
        message
    }

    fn identity() -> impl Strategy<Value = Identity> {
        (any::<Option<[u8; 32]>>(), "[a-z@ ]{0,20}").prop_map(|(ed25519, comment)| Identity {
            algorithm: if ed25519.is_some() { ED25519 } else { "ssh-rsa" }.to_owned(),
            ed25519,
            comment,
        })
    }

    proptest! {
        #[test]
        fn answers_are_parsed_and_every_truncation_is_refused(identities in vec(identity(), 0..5), bytes in any::<[u8; 32]>()) {
            let message = answer(&identities);
            prop_assert_eq!(&parse_identities(&message).unwrap(), &identities);
            for end in 0..message.len() {
                prop_assert!(parse_identities(&message[..end]).is_err());
            }
            prop_assert!(parse_identities(&[message.as_slice(), b"x"].concat()).is_err());
            let message = signature(ED25519, &[bytes, bytes].concat());
            prop_assert_eq!(parse_signature(&message).unwrap().to_vec(), [bytes, bytes].concat());
            for end in 0..message.len() {
                prop_assert!(parse_signature(&message[..end]).is_err());
            }
        }

        #[test]
        fn arbitrary_answers_are_errors_of_one_line(mut bytes in vec(any::<u8>(), 0..300), kind in any::<bool>()) {
            if let (true, Some(first)) = (kind, bytes.first_mut()) {
                *first = IDENTITIES_ANSWER;
            }
            if let Err(error) = parse_identities(&bytes) {
                prop_assert!(!error.to_string().contains('\n'));
            }
            if let Some(first) = bytes.first_mut() {
                *first = SIGN_RESPONSE;
            }
            prop_assert!(parse_signature(&bytes).is_err());
        }
    }

    #[test]
    fn failures_and_other_algorithms_are_errors() {
        assert!(parse_identities(&[FAILURE]).unwrap_err().message().contains("refused to list"));
        assert!(parse_signature(&[FAILURE]).unwrap_err().message().contains("refused to sign"));
        assert!(parse_signature(&signature("ssh-rsa", &[0; 64])).unwrap_err().message().contains("not an ssh-ed25519"));
        assert!(parse_signature(&signature(ED25519, &[0; 63])).is_err());
        let many = [&[IDENTITIES_ANSWER][..], &u32::MAX.to_be_bytes()].concat();
        assert!(parse_identities(&many).is_err());
    }
}
