//! Where a secret key comes from: a file, an open descriptor or the environment, and never the command line itself.
//!
//! What is read goes through one buffer that is wiped. No message shows what was given where a name is expected: people
//! put the key there.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nar_pack::error::{Context, Error, Result};
use nar_pack::stdio;
use nar_pack::{process, redact};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use zeroize::Zeroizing;

use crate::TOOL;
use crate::cli::OpenKeys;
use crate::keys::SecretKey;

/// Longest secret key that is read, in bytes.
const MAX_SIZE: usize = 4096;
/// Base 64 of a secret half alone has 44 digits; no name of a file or variable ends in as many.
const SHORTEST_KEY: usize = 40;

/// Reads the keys that the descriptors and variables hold.
///
/// # Errors
/// A usage failure for what names none, a refusal of what is no key.
pub fn open_keys(keys: &OpenKeys) -> Result<Vec<SecretKey>> {
    let numbers: Vec<RawFd> = keys.key_fds.iter().map(|number| descriptor(number)).collect::<Result<_>>()?;
    if let Some(twice) = (1..numbers.len()).find(|&n| numbers[..n].contains(&numbers[n])) {
        let number = numbers[twice];
        return Err(Error::failed(format!("--key-fd {number} is there twice, but a descriptor is read once")));
    }
    let descriptors = numbers.into_iter().map(|number| from_descriptor(number, keys.seed));
    descriptors.chain(keys.key_envs.iter().map(|name| from_variable(name, keys.seed))).collect()
}

/// Reads the key that a file holds, and warns when others may read it too.
///
/// # Errors
/// Fails when the file cannot be read; refuses what is no key.
pub fn from_file(path: &Path, seed: bool) -> Result<SecretKey> {
    if looks_like_a_key(&path.to_string_lossy()) {
        return Err(Error::failed(
            "a key was given where the name of a file is expected; it has been in the list of processes, so make another",
        ));
    }
    let at = || format!("key file {}", path.display());
    let file = File::open(path).map_err(Error::from).context(at)?;
    warn_if_readable(&file, &at());
    read(file, seed).context(at)
}

/// Reads the key from standard input.
///
/// # Errors
/// As [`from_file`].
pub fn from_stdin(seed: bool) -> Result<SecretKey> {
    // Without the buffer, which nobody would wipe.
    read(stdio::stdin("a secret key")?.into_inner(), seed).context(|| "standard input")
}

fn descriptor(number: &str) -> Result<RawFd> {
    let parsed = number.parse().ok().filter(|number: &RawFd| *number > 2);
    parsed.ok_or_else(|| Error::failed("--key-fd takes the number of an open descriptor, 3 or more"))
}

fn from_descriptor(number: RawFd, seed: bool) -> Result<SecretKey> {
    let at = || format!("key on descriptor {number}");
    let file = open_descriptor(number).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BADF) => Error::failed("no such descriptor is open"),
        _ => Error::from(error),
    });
    let file = file.context(at)?;
    warn_if_readable(&file, &at());
    read(file, seed).context(at)
}

/// Our own descriptor, duplicated. `/proc` would open the file again, for which a user who was only given the
/// descriptor may lack the permission; it serves where the system has or allows no other way.
fn open_descriptor(number: RawFd) -> io::Result<File> {
    let duplicate = || pidfd_getfd(pidfd_open(getpid(), PidfdFlags::empty())?, number, PidfdGetfdFlags::empty());
    match duplicate() {
        Ok(fd) => Ok(File::from(fd)),
        Err(Errno::NOSYS | Errno::PERM) => File::open(format!("/proc/self/fd/{number}")),
        Err(error) => Err(error.into()),
    }
}

fn from_variable(name: &str, seed: bool) -> Result<SecretKey> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if name.is_empty() || !plain || name.len() > 255 {
        return Err(Error::failed("--key-env takes the name of an environment variable, not its value"));
    }
    let at = || format!("key in ${name}");
    let value = env::var_os(name).ok_or_else(|| Error::failed("no such variable is set")).context(at)?;
    let value = Zeroizing::new(value.into_vec());
    read(value.as_slice(), seed).context(at)
}

/// `NAME:BASE64`, be it wrapped as `base64` does, and the digits alone.
fn looks_like_a_key(text: &str) -> bool {
    let text: String = text.split_whitespace().collect();
    let (named, digits) = text.rsplit_once(':').map_or((false, text.as_str()), |(_, digits)| (true, digits));
    let are_digits = digits.bytes().all(|c| c.is_ascii_alphanumeric() || b"+/=".contains(&c));
    // A path of this length without a dot or a dash has no letters of both cases.
    digits.len() >= SHORTEST_KEY && are_digits && (named || redact::has_both_cases(digits))
}

fn warn_if_readable(file: &File, shown: &str) {
    let Ok(about) = file.metadata() else { return };
    if about.is_file() && about.mode() & 0o044 != 0 {
        let mode = about.permissions().mode() & 0o7777;
        process::print_message(TOOL, format!("warning: {shown}: others may read it (mode {mode:04o}); chmod 600 it"));
    }
}

/// Reads a key of at most [`MAX_SIZE`] bytes through a buffer that is wiped.
fn read(mut from: impl Read, seed: bool) -> Result<SecretKey> {
    let mut bytes = Zeroizing::new([0_u8; MAX_SIZE + 1]);
    let mut end = 0;
    loop {
        match from.read(&mut bytes[end..]) {
            Ok(0) if end > MAX_SIZE => return Err(Error::refused(format!("larger than {MAX_SIZE} bytes"))),
            Ok(0) => break,
            Ok(n) => end += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let text = str::from_utf8(&bytes[..end]).map_err(|_| Error::refused("not text"))?;
    if seed { SecretKey::parse_seed(text) } else { SecretKey::parse(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_place_of_a_name_is_not_shown() {
        let key = SecretKey::generate("k").unwrap().to_file_text();
        let digits = key.split(':').nth(1).unwrap();
        let open = |key_fds: &[&str], key_envs: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            open_keys(&OpenKeys { key_fds: owned(key_fds), key_envs: owned(key_envs), seed: false }).unwrap_err()
        };
        for failure in [
            from_file(Path::new(key.as_str()), false).unwrap_err(),
            open(&[&key], &[]),
            open(&[], &[&key]),
            open(&["2"], &[]),
            open(&["1000", "01000"], &[]),
        ] {
            assert!(failure.exit_code() == 2 && !failure.message().contains(&digits[..20]), "{failure}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused_whole() {
        let key = SecretKey::generate("k").unwrap().to_file_text();
        assert!(read(key.as_bytes(), false).is_ok());
        let padded = |size: usize| [key.as_bytes(), &vec![b'\n'; size - key.len()]].concat();
        assert!(read(padded(MAX_SIZE).as_slice(), false).is_ok());
        assert!(read(padded(MAX_SIZE + 1).as_slice(), false).unwrap_err().message().contains("larger"));
    }
}
