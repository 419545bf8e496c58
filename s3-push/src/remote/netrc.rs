//! User names and passwords of web servers, from the file that curl and Nix's `netrc-file` share.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nar_pack::error::{Error, Result};
use nar_pack::process;
use netrc::Netrc;

/// Default of Nix's `netrc-file` (manual, `nix.conf`).
const NIX_NETRC: &str = "/etc/nix/netrc";

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user name; may be empty.
    pub name: String,
    /// The password; may be empty.
    pub password: String,
}

/// Leaves the password out.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.name)
    }
}

/// Finds the login for `host` in the file `netrc` if given, else in the first of `~/.netrc` and `/etc/nix/netrc` that is
/// readable.
///
/// # Errors
/// Fails if the given file is unreadable or invalid. An invalid default file is skipped with a warning.
pub fn find_login(host: &str, netrc: Option<&Path>, tool: &str) -> Result<Option<Login>> {
    if let Some(path) = netrc {
        let denied = || Error::failed(format!("cannot read {}: permission denied", path.display()));
        return read(path)?.ok_or_else(denied).map(|file| login_for(file, host));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".netrc"));
    for path in home.into_iter().chain([PathBuf::from(NIX_NETRC)]).filter(|path| path.is_file()) {
        match read(&path) {
            Ok(Some(file)) => return Ok(login_for(file, host)),
            Ok(None) => {}
            Err(error) => process::print_message(tool, format!("warning: {error}; the file is ignored")),
        }
    }
    Ok(None)
}

/// Returns none for a file that this user may not read.
fn read(path: &Path) -> Result<Option<Netrc>> {
    let display = path.display();
    match Netrc::from_file(path) {
        Ok(file) => Ok(Some(file)),
        Err(netrc::Error::Io(error)) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(netrc::Error::Io(error)) => Err(Error::failed(format!("cannot read {display}: {error}"))),
        Err(netrc::Error::Parsing { parser, .. }) => {
            let cause = parse_error(&parser.to_string());
            Err(Error::failed(format!("{display} is not a valid netrc file: {cause}")))
        }
    }
}

/// Rewrites the parser's message, which ends in `(line N)`: the word that it quotes may be a password.
fn parse_error(message: &str) -> String {
    let line = message.rsplit_once("(line ").map(|(_, line)| line.trim_end_matches(')'));
    format!("line {}: unexpected word (not shown, as it may be a password)", line.unwrap_or("?"))
}

fn login_for(mut file: Netrc, host: &str) -> Option<Login> {
    let machine = file.hosts.keys().find(|machine| machine.eq_ignore_ascii_case(host)).cloned();
    let found = file.hosts.remove(machine.as_deref().unwrap_or("default"))?;
    Some(Login { name: found.login, password: found.password })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# a comment\nmachine a.example login alice password wonder\n\
        macdef init\nmachine c.example login mallory password x\n\n\
        machine B.example\n  login bob\n  password builder\ndefault login anon password any\n";

    fn find_in(text: &str, host: &str) -> Result<Option<Login>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netrc");
        std::fs::write(&path, text).unwrap();
        find_login(host, Some(&path), "test")
    }

    #[test]
    fn each_host_gets_its_own_login() {
        let login = |host: &str| find_in(FILE, host).unwrap().map(|login| (login.name, login.password));
        let expected = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(login("a.example"), expected("alice", "wonder"));
        assert_eq!(login("b.example"), expected("bob", "builder"));
        assert_eq!(login("c.example"), expected("anon", "any"));
        assert_eq!(find_in("machine a login x password y", "b").unwrap(), None);
    }

    #[test]
    fn a_password_is_not_printed() {
        let login = find_in(FILE, "a.example").unwrap();
        assert!(!format!("{login:?}").contains("wonder"));
        let error = find_in("machine b\nmachine a login x wonder y", "a").unwrap_err();
        let message = error.message();
        assert!(message.contains("is not a valid netrc file: line 2: ") && !message.contains("wonder"), "{message}");
    }

    #[test]
    fn a_given_file_must_exist() {
        assert_eq!(find_login("a", Some(Path::new("/nowhere/netrc")), "test").unwrap_err().exit_status(), 2);
    }
}
