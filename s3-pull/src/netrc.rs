//! Passwords of HTTP servers: the file that curl and Nix's `netrc-file` share.

use std::fmt;
use std::path::PathBuf;

use nar_pack::stage::{Failure, Outcome};

/// Longest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Where Nix looks when nothing else is said.
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

/// What a netrc says of `host`, looked for in `$NETRC`, else `~/.netrc`, else `/etc/nix/netrc`.
///
/// # Errors
/// Fails when the file that `$NETRC` names cannot be read; the others may be absent or somebody else's.
pub fn login(host: &str) -> Outcome<Option<Login>> {
    let given = std::env::var_os("NETRC").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = given {
        let text = read(&path).map_err(|error| Failure::failed(format!("reading {}: {error}", path.display())))?;
        return Ok(find(&text, host));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".netrc"));
    let text = home.into_iter().chain([PathBuf::from(OF_NIX)]).find_map(|path| read(&path).ok());
    Ok(text.and_then(|text| find(&text, host)))
}

fn read(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_SIZE).read_to_string(&mut text)?;
    Ok(text)
}

/// The first entry for `host`, or the `default` one if that comes before.
fn find(text: &str, host: &str) -> Option<Login> {
    let mut lines = text.lines();
    let mut found: Option<Login> = None;
    let mut relevant = false;
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "machine" | "default" => {
                    if found.is_some() {
                        return found;
                    }
                    relevant = word == "default" || words.next().is_some_and(|name| name.eq_ignore_ascii_case(host));
                    if relevant {
                        found = Some(Login { name: String::new(), password: String::new() });
                    }
                }
                "login" | "password" | "account" => {
                    let value = words.next().unwrap_or_default().to_owned();
                    match (&mut found, word) {
                        (Some(login), "login") if relevant => login.name = value,
                        (Some(login), "password") if relevant => login.password = value,
                        _ => {}
                    }
                }
                // A macro goes on to the next empty line.
                "macdef" => {
                    lines.by_ref().take_while(|line| !line.trim().is_empty()).for_each(drop);
                    break;
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# a comment\nmachine a.example login alice password wonder\n\
        macdef init\nmachine c.example login mallory password x\n\n\
        machine B.example\n  login bob\n  password #builder\ndefault login anon password any\n";

    fn name_and_password(host: &str) -> Option<(String, String)> {
        find(FILE, host).map(|login| (login.name, login.password))
    }

    #[test]
    fn each_host_gets_its_own() {
        let own = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(name_and_password("a.example"), own("alice", "wonder"));
        assert_eq!(name_and_password("b.example"), own("bob", "#builder"));
        assert_eq!(name_and_password("c.example"), own("anon", "any"));
        assert_eq!(find("machine a login x password y", "b"), None);
        assert_eq!(find("machine", "b"), None);
    }

    #[test]
    fn a_password_is_not_shown() {
        assert!(!format!("{:?}", find(FILE, "a.example")).contains("wonder"));
    }
}
