//! User names and passwords of HTTP servers, from the file that curl and Nix's `netrc-file` share.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nar_pack::error::{Error, Result};
use nar_pack::process;
use netrc::Netrc;

/// Where Nix looks when nothing else is said (`netrc-file` in the manual of `nix.conf`).
const OF_NIX: &str = "/etc/nix/netrc";

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user name; may be empty.
    pub name: String,
    /// The password; may be empty.
    pub password: String,
}

/// The password stays out of messages.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.name)
    }
}

/// What a netrc says of `host`: the file `given`, else the first of `~/.netrc` and `/etc/nix/netrc` that can be read.
///
/// # Errors
/// Fails when the file that is given cannot be read or understood; of the others that is only told.
pub fn login(host: &str, given: Option<&Path>, tool: &str) -> Result<Option<Login>> {
    if let Some(path) = given {
        let denied = || Error::failed(format!("reading {}: permission denied", path.display()));
        return read(path)?.ok_or_else(denied).map(|file| of_host(file, host));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".netrc"));
    for path in home.into_iter().chain([PathBuf::from(OF_NIX)]).filter(|path| path.is_file()) {
        match read(&path) {
            Ok(Some(file)) => return Ok(of_host(file, host)),
            Ok(None) => {}
            Err(failure) => process::print_message(tool, failure),
        }
    }
    Ok(None)
}

/// None for a file that is somebody else's. What the parser says of a malformed one is not told: it may be a password.
fn read(path: &Path) -> Result<Option<Netrc>> {
    let shown = path.display();
    match Netrc::from_file(path) {
        Ok(file) => Ok(Some(file)),
        Err(netrc::Error::Io(error)) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(netrc::Error::Io(error)) => Err(Error::failed(format!("reading {shown}: {error}"))),
        Err(netrc::Error::Parsing { .. }) => Err(Error::failed(format!("reading {shown}: it is no netrc file"))),
    }
}

fn of_host(mut file: Netrc, host: &str) -> Option<Login> {
    let name = file.hosts.keys().find(|name| name.eq_ignore_ascii_case(host)).cloned();
    let found = file.hosts.remove(name.as_deref().unwrap_or("default"))?;
    Some(Login { name: found.login, password: found.password })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# a comment\nmachine a.example login alice password wonder\n\
        macdef init\nmachine c.example login mallory password x\n\n\
        machine B.example\n  login bob\n  password builder\ndefault login anon password any\n";

    fn in_file(text: &str, host: &str) -> Result<Option<Login>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netrc");
        std::fs::write(&path, text).unwrap();
        login(host, Some(&path), "test")
    }

    #[test]
    fn each_host_gets_its_own() {
        let of = |host: &str| in_file(FILE, host).unwrap().map(|login| (login.name, login.password));
        let own = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(of("a.example"), own("alice", "wonder"));
        assert_eq!(of("b.example"), own("bob", "builder"));
        assert_eq!(of("c.example"), own("anon", "any"));
        assert_eq!(in_file("machine a login x password y", "b").unwrap(), None);
    }

    #[test]
    fn a_password_is_not_shown() {
        let login = in_file(FILE, "a.example").unwrap();
        assert!(!format!("{login:?}").contains("wonder"));
        let failure = in_file("machine a login x wonder y", "a").unwrap_err();
        assert!(!failure.to_string().contains("wonder") && failure.to_string().contains("netrc"), "{failure}");
    }

    #[test]
    fn a_file_that_is_given_must_be_there() {
        assert_eq!(login("a", Some(Path::new("/nowhere/netrc")), "test").unwrap_err().exit_code(), 2);
    }
}
