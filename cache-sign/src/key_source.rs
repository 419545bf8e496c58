//! Reads secret keys from files, standard input, open file descriptors and environment variables, but never from the
//! command line, which every user of the system can read. A key passes only through a buffer that is wiped. No message
//! quotes an argument that should be a name, because users paste the key there by mistake.

use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nar_pack::access_list;
use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio::{self, read_full};
use nar_pack::{process, redact};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use zeroize::Zeroizing;

use crate::cli::SecretKeyArgs;
use crate::keys::SecretKey;
use crate::run::TOOL;

/// Maximum size of a secret key as it is read, in bytes.
const MAX_KEY_TEXT_SIZE: usize = 4096;
/// Minimum number of base64 digits that are taken for a key. The secret half alone has 44; names of files and variables
/// do not end in that many.
const MIN_KEY_DIGITS: usize = 40;
/// Maximum length of the name of an environment variable, in bytes.
const MAX_VARIABLE_NAME_LENGTH: usize = 255;

/// Where secret keys are read from.
#[derive(Debug, Clone)]
pub struct SecretKeySources {
    sources: Vec<SecretKeySource>,
    /// Whether a key may be the 32 bytes of the secret half alone.
    allow_seed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SecretKeySource {
    File(PathBuf),
    Stdin,
    Descriptor(RawFd),
    Variable(String),
}

impl SecretKeySources {
    /// The keys in `files`, where `-` is standard input, and those that `args` names.
    ///
    /// # Errors
    /// A usage error for an argument that cannot be the name of such a source, and for a descriptor given twice.
    pub fn new(files: &[PathBuf], args: &SecretKeyArgs) -> Result<Self> {
        let mut sources = Vec::new();
        for file in files {
            sources.push(parse_file(file)?);
        }
        for number in &args.key_fds {
            let source = parse_descriptor(number)?;
            if sources.contains(&source) {
                let error = Error::usage(format!("duplicate option --key-fd {}", number.trim_start_matches('0')));
                return Err(error.with_hint("a file descriptor can be read only once"));
            }
            sources.push(source);
        }
        for name in &args.key_envs {
            sources.push(parse_variable(name)?);
        }
        Ok(Self { sources, allow_seed: args.seed })
    }

    /// Whether there is no source.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Reads all keys, in the order of the sources. Warns about files that other users can read.
    ///
    /// # Errors
    /// Fails if a source cannot be read; refuses malformed keys.
    pub fn read(&self) -> Result<Vec<SecretKey>> {
        let read_source = |source: &SecretKeySource| match source {
            SecretKeySource::File(path) => read_file(path, self.allow_seed),
            SecretKeySource::Stdin => read_stdin(self.allow_seed),
            SecretKeySource::Descriptor(number) => read_descriptor(*number, self.allow_seed),
            SecretKeySource::Variable(name) => read_variable(name, self.allow_seed),
        };
        self.sources.iter().map(read_source).collect()
    }
}

fn parse_file(path: &Path) -> Result<SecretKeySource> {
    if path == Path::new("-") {
        return Ok(SecretKeySource::Stdin);
    }
    if looks_like_a_key(&path.to_string_lossy()) {
        let error = Error::usage("expected the name of a key file, found a key");
        return Err(error.with_hint("generate a new key: other users can see command-line arguments"));
    }
    Ok(SecretKeySource::File(path.to_owned()))
}

fn parse_descriptor(number: &str) -> Result<SecretKeySource> {
    let parsed = number.parse().ok().filter(|number: &RawFd| *number > 2);
    parsed
        .map(SecretKeySource::Descriptor)
        .ok_or_else(|| Error::usage("--key-fd: expected the number of an open file descriptor, 3 or more"))
}

fn parse_variable(name: &str) -> Result<SecretKeySource> {
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if name.is_empty() || !is_plain || name.len() > MAX_VARIABLE_NAME_LENGTH {
        return Err(Error::usage("--key-env: expected the name of an environment variable, not its value"));
    }
    Ok(SecretKeySource::Variable(name.to_owned()))
}

fn read_file(path: &Path, allow_seed: bool) -> Result<SecretKey> {
    let display_name = format!("key file {}", path.display());
    let file = File::open(path).map_err(Error::from).context(|| format!("cannot read {display_name}"))?;
    warn_if_readable_by_others(&file, &display_name);
    read_key(file, allow_seed).context(|| display_name)
}

fn read_stdin(allow_seed: bool) -> Result<SecretKey> {
    // Bypasses the buffer of standard input, which is not wiped.
    read_key(stdio::stdin("a secret key")?.into_inner().into_file(), allow_seed).context(|| "standard input")
}

fn read_descriptor(number: RawFd, allow_seed: bool) -> Result<SecretKey> {
    let display_name = format!("file descriptor {number}");
    let file = duplicate_descriptor(number).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BADF) => Error::failed(format!("{display_name} is not open")),
        _ => Error::from(error).context(format!("cannot read {display_name}")),
    })?;
    warn_if_readable_by_others(&file, &format!("the key file on {display_name}"));
    read_key(file, allow_seed).context(|| display_name)
}

/// Duplicates a descriptor of this process. `/proc/self/fd` would open the file again, which needs read permission that
/// a user who was only given the descriptor may lack; it is the fallback where the system call is not available.
fn duplicate_descriptor(number: RawFd) -> io::Result<File> {
    let duplicate = || pidfd_getfd(pidfd_open(getpid(), PidfdFlags::empty())?, number, PidfdGetfdFlags::empty());
    match duplicate() {
        Ok(fd) => Ok(File::from(fd)),
        Err(Errno::NOSYS | Errno::PERM) => File::open(format!("/proc/self/fd/{number}")),
        Err(error) => Err(error.into()),
    }
}

fn read_variable(name: &str, allow_seed: bool) -> Result<SecretKey> {
    let value = env::var_os(name).ok_or_else(|| Error::usage(format!("the environment variable {name} is not set")))?;
    let value = Zeroizing::new(value.into_vec());
    read_key(value.as_slice(), allow_seed).context(|| format!("environment variable {name}"))
}

/// Whether `text` is `NAME:BASE64`, on one line or wrapped as `base64` does, or the base64 digits alone.
fn looks_like_a_key(text: &str) -> bool {
    let text: String = text.split_whitespace().collect();
    let (has_name, digits) = text.rsplit_once(':').map_or((false, text.as_str()), |(_, digits)| (true, digits));
    let is_base64 = digits.bytes().all(|c| c.is_ascii_alphanumeric() || b"+/=".contains(&c));
    // A path of this length without a dot or a dash rarely has letters of both cases.
    digits.len() >= MIN_KEY_DIGITS && is_base64 && (has_name || redact::has_both_cases(digits))
}

/// Returns whether the access control list of a file lets a group read it; none if there is no list.
fn group_entries_may_read(file: &File) -> Option<bool> {
    const ENTRIES_START: usize = 4;
    const ENTRY_SIZE: usize = 8;
    const READ: u16 = 4;
    const OWNING_GROUP: u16 = 4;
    const OTHER_GROUP: u16 = 8;
    let list = access_list::read(file)?;
    let number = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut entries = list.get(ENTRIES_START..)?.chunks_exact(ENTRY_SIZE);
    Some(entries.any(|entry| matches!(number(entry), OWNING_GROUP | OTHER_GROUP) && number(&entry[2..]) & READ != 0))
}

fn warn_if_readable_by_others(file: &File, display_name: &str) {
    let Ok(metadata) = file.metadata() else { return };
    // With an access control list, the group bits of the mode are those of the mask. That of a systemd credential names the
    // user of the service.
    let group_may_read = group_entries_may_read(file).unwrap_or(metadata.mode() & 0o040 != 0);
    if metadata.is_file() && (group_may_read || metadata.mode() & 0o004 != 0) {
        let mode = metadata.permissions().mode() & 0o7777;
        process::print_message(
            TOOL,
            format!("warning: {display_name} is readable by other users (mode {mode:04o}): set its mode to 0600"),
        );
    }
}

/// Reads a key of at most [`MAX_KEY_TEXT_SIZE`] bytes through a buffer that is wiped.
fn read_key(mut input: impl Read, allow_seed: bool) -> Result<SecretKey> {
    let mut bytes = Zeroizing::new([0_u8; MAX_KEY_TEXT_SIZE + 1]);
    let end = read_full(&mut input, bytes.as_mut_slice()).context(|| "cannot read the key")?;
    if end > MAX_KEY_TEXT_SIZE {
        return Err(Error::refused(format!("larger than {MAX_KEY_TEXT_SIZE} bytes, not a secret key")));
    }
    let text = str::from_utf8(&bytes[..end]).map_err(|_| Error::refused("not UTF-8 text"))?;
    if text.trim().is_empty() {
        return Err(Error::usage("expected a secret key, found nothing"));
    }
    if allow_seed { SecretKey::parse_allowing_seed(text) } else { SecretKey::parse(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_given_instead_of_a_name_is_not_quoted() {
        let key = SecretKey::generate("k").unwrap().to_file_text();
        let digits = key.split(':').nth(1).unwrap();
        let error_of = |files: &[&str], key_fds: &[&str], key_envs: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
            let args = SecretKeyArgs { key_fds: owned(key_fds), key_envs: owned(key_envs), seed: false };
            SecretKeySources::new(&files, &args).unwrap_err()
        };
        for error in [
            error_of(&[&key], &[], &[]),
            error_of(&[], &[&key], &[]),
            error_of(&[], &[], &[&key]),
            error_of(&[], &["2"], &[]),
            error_of(&[], &["1000", "01000"], &[]),
        ] {
            assert!(error.exit_status() == 2 && !error.message().contains(&digits[..20]), "{error}");
        }
    }

    #[test]
    fn a_key_that_is_too_long_is_refused() {
        let key = SecretKey::generate("k").unwrap().to_file_text();
        assert!(read_key(key.as_bytes(), false).is_ok());
        let padded = |size: usize| [key.as_bytes(), &vec![b'\n'; size - key.len()]].concat();
        assert!(read_key(padded(MAX_KEY_TEXT_SIZE).as_slice(), false).is_ok());
        let error = read_key(padded(MAX_KEY_TEXT_SIZE + 1).as_slice(), false).unwrap_err();
        assert!(error.message().contains("larger"));
    }
}
