//! Uploads any bytes under a key of the user's choice, for `--key`. Keys whose contents other clients trust are refused
//! or verified, so an unchecked narinfo or a NAR under a wrong hash cannot be published this way.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use nar_pack::error::{Error, Result};
use narinfo_gen::archive::{DEBUGINFO_PREFIX, MAX_KEY_LENGTH, NAR_PREFIX, Object, REALISATION_PREFIXES};
use narinfo_gen::hash::{Hasher, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::publish::body::{Body, BodyLength, Part, read_part};
use crate::publish::byte_budget::ByteBudget;
use crate::publish::part_sizes::{MAX_PARTS, PartSizes};
use crate::publish::upload::{ObjectTarget, Overwrite, Uploader};
use crate::remote::liveness::COLLECTOR_PREFIX;
use crate::remote::pins;

/// Parts that are buffered between the reader and the upload.
const PART_CHANNEL_CAPACITY: usize = 2;

/// An object under a key of the user's choice.
#[derive(Debug)]
pub struct KeyTarget {
    key: String,
    content_type: String,
    overwrite: Overwrite,
    /// The hash that the bytes must have, if the key is that of a NAR.
    file_hash: Option<Sha256>,
}

impl KeyTarget {
    /// Checks the key. The content type defaults to that of the key's kind of object, or to that of its file name
    /// extension.
    ///
    /// # Errors
    /// Returns a usage error for an invalid key, and for one that only a regular push may write.
    pub fn new(key: &str, content_type: Option<&str>) -> Result<Self> {
        let object = Object::of_key(key);
        let name = key.rsplit('/').next().unwrap_or_default();
        let of_name = Object::of_key(name);
        if matches!(of_name, Some(Object::Narinfo(_) | Object::CacheInfo)) || name.ends_with(".narinfo") {
            let error = Error::usage(format!("{key} cannot be uploaded with --key, because it would not be verified"));
            return Err(error.with_hint(match of_name {
                Some(Object::CacheInfo) => "use --set-cache-info to change it",
                _ => "push it without --key, as narinfo text or in a cache archive",
            }));
        }
        if key.starts_with(COLLECTOR_PREFIX) {
            let error = format!("{key} cannot be uploaded with --key: pushes read what is below {COLLECTOR_PREFIX}");
            return Err(Error::usage(error).with_hint("only 's3-push delete' and 'collect' write there"));
        }
        // An object at the prefix without its slash would hide what is below it where a service stores objects as files.
        let prefixes =
            [COLLECTOR_PREFIX, pins::PREFIX, NAR_PREFIX, DEBUGINFO_PREFIX].into_iter().chain(REALISATION_PREFIXES);
        if prefixes.into_iter().any(|prefix| prefix.strip_suffix('/') == Some(key)) {
            return Err(Error::usage(format!(
                "{key} cannot be uploaded with --key: it is the prefix of other objects"
            )));
        }
        if key.starts_with(pins::PREFIX) {
            let error = format!("{key} cannot be uploaded with --key, because its paths would not be looked up");
            return Err(Error::usage(error).with_hint("use 's3-push pin', which reads a path list"));
        }
        if object == Some(Object::Nar(None)) {
            return Err(Error::usage(format!("{key}: the key of a NAR must be nar/<FileHash>.nar[.EXTENSION]")));
        }
        check_key(key)?;
        let (file_hash, overwrite) = match object {
            Some(Object::Nar(hash)) => (hash, Overwrite::Never),
            _ => (None, Overwrite::Allowed),
        };
        let default = object.map_or_else(|| content_type_of_name(name), Object::content_type);
        let content_type = content_type.unwrap_or(default).to_owned();
        Ok(Self { key: key.to_owned(), content_type, overwrite, file_hash })
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    fn verify(&self, hash: Sha256) -> Result {
        match self.file_hash {
            Some(expected) if expected != hash => Err(Error::refused(format!(
                "{}: the SHA-256 of the contents is {hash}, which does not match the key",
                self.key
            ))),
            _ => Ok(()),
        }
    }
}

/// Returns the content type of a file that is no object of a cache. Browsers show `index.html` instead of saving it.
fn content_type_of_name(name: &str) -> &'static str {
    mime_guess::from_path(name).first_raw().unwrap_or("application/octet-stream")
}

fn check_key(key: &str) -> Result {
    let too_long = format!("it must not be longer than {MAX_KEY_LENGTH} bytes");
    let problem = if key.is_empty() {
        "it must not be empty"
    } else if key.len() > MAX_KEY_LENGTH {
        too_long.as_str()
    } else if key.starts_with('/') {
        "it must not start with /"
    } else if key.contains(|c: char| c.is_control()) {
        "it must not contain control characters"
    } else if key.split('/').any(|part| matches!(part, "." | "..")) {
        "it must not contain . or .. as a component"
    } else {
        return Ok(());
    };
    Err(Error::usage(format!("invalid key {key:?}: {problem}")))
}

/// Uploads `input` to its end; returns its size in bytes. All parts but the last have `part_size` bytes.
///
/// # Errors
/// Fails when reading or the upload does, or if there are more than 10,000 parts. Refuses bytes whose hash differs
/// from the one in the key of a NAR.
pub async fn put_key(
    uploader: &Arc<Uploader>,
    target: &KeyTarget,
    mut input: impl Read + Send + 'static,
    memory: ByteBudget,
    part_size: u64,
) -> Result<u64> {
    let (sender, parts) = mpsc::channel(PART_CHANNEL_CAPACITY);
    let (size, runtime) = (PartSizes::new(part_size, None).part_size(), Handle::current());
    let reader = tokio::task::spawn_blocking(move || read_parts(&mut input, &memory, size, &sender, &runtime));
    let verification = async {
        let result = reader.await.unwrap_or_else(|_| Err(Error::panicked("reader thread")));
        let (hash, size) = result?;
        target.verify(hash)?;
        Ok(size)
    };
    let object = ObjectTarget { key: &target.key, content_type: &target.content_type, overwrite: target.overwrite };
    let body = Body { parts, length: BodyLength::Unknown };
    let (size, _) = uploader.upload(&object, body, verification).await?;
    Ok(size)
}

/// Splits `input` into parts of `part_size` bytes; returns the hash and the number of all bytes.
fn read_parts(
    input: &mut impl Read,
    memory: &ByteBudget,
    part_size: usize,
    parts: &mpsc::Sender<Part>,
    runtime: &Handle,
) -> Result<(Sha256, u64)> {
    let mut hasher = Hasher::default();
    for index in 0.. {
        let permit = runtime.block_on(memory.acquire(part_size))?;
        let bytes = read_part(&mut *input, part_size)?;
        hasher.update(&bytes);
        let is_last = bytes.len() < part_size;
        if index == MAX_PARTS && !bytes.is_empty() {
            let cause = format!("the input has more than {MAX_PARTS} parts of {part_size} bytes");
            return Err(
                Error::failed(cause).with_hint("use a larger --part-size, and at least twice that for --memory")
            );
        }
        if !bytes.is_empty() && parts.blocking_send(Part::new(Bytes::from(bytes), permit)).is_err() {
            return Err(Error::canceled());
        }
        if is_last {
            break;
        }
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Reads `size` bytes in parts of one byte. Returns the sizes of the parts, and the error.
    fn read_in_bytes(size: u64) -> (Vec<usize>, Option<String>) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (sender, mut parts) = mpsc::channel(PART_CHANNEL_CAPACITY);
        let handle = runtime.handle().clone();
        let reader = std::thread::spawn(move || {
            read_parts(&mut io::repeat(0).take(size), &ByteBudget::new(4), 1, &sender, &handle)
        });
        let mut sizes = Vec::new();
        while let Some(part) = parts.blocking_recv() {
            sizes.push(part.bytes.len());
        }
        (sizes, reader.join().unwrap().err().map(|error| error.to_string()))
    }

    /// Cloudflare R2 refuses an upload whose parts have several sizes.
    #[test]
    fn a_body_of_unknown_length_has_at_most_ten_thousand_parts_of_one_size() {
        assert_eq!(read_in_bytes(MAX_PARTS), (vec![1; 10_000], None));
        let (sizes, error) = read_in_bytes(MAX_PARTS + 1);
        assert_eq!(sizes, vec![1; 10_000]);
        assert!(error.unwrap().contains("more than 10000 parts of 1 bytes"));
    }

    #[test]
    fn invalid_and_reserved_keys_are_usage_errors() {
        let too_long = "x".repeat(1025);
        for key in [
            "",
            "/x",
            "a/../b",
            ".",
            "a\nb",
            &too_long,
            "nix-cache-info",
            "a/nix-cache-info",
            "nar/x.nar",
            "x.narinfo",
            "gc/sweeping",
        ] {
            assert!(KeyTarget::new(key, None).unwrap_err().is_usage(), "{key}");
        }
        let log = KeyTarget::new("log/x.drv", None).unwrap();
        assert_eq!((log.overwrite, log.content_type.as_str()), (Overwrite::Allowed, "text/plain; charset=UTF-8"));
        let other = KeyTarget::new("x", Some("text/html")).unwrap();
        assert_eq!((other.key(), other.content_type.as_str()), ("x", "text/html"));
        for (key, content_type) in [
            ("index.html", "text/html"),
            ("a.b/INDEX.HTML", "text/html"),
            ("robots.txt", "text/plain"),
            ("logo.svg", "image/svg+xml"),
            ("html", "application/octet-stream"),
            ("a.html/x", "application/octet-stream"),
            ("log/x.html", "text/plain; charset=UTF-8"),
        ] {
            assert_eq!(KeyTarget::new(key, None).unwrap().content_type, content_type, "{key}");
        }
    }
}
