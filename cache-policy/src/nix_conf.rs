//! The lines of nix.conf that make a client use a cache, and their way into a file and out of it.
//!
//! They stand at the end of the file between two comments that name the cache, so that they come after whatever the file
//! includes, and can be found again. Nothing else in the file is touched, whatever bytes it has. A line of nix.conf ends
//! where it ends (see [`cache_sign::nix_conf`]), so what is added is never joined to a line before it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use cache_sign::keys::PublicKey;
use cache_sign::nix_conf::{Reading, Settings};
use nar_pack::error::{Context, Error, Result};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use s3_push::remote::location::{Addressing, DEFAULT_REGION, Location};

/// Longest nix.conf that is merged into, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Mode of a nix.conf that is new.
const MODE: u32 = 0o644;

/// What a path in a URL cannot hold as it is. S3 takes a plus sign for a space.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A cache, as a client sees it.
#[derive(Debug, Clone)]
pub struct Client {
    /// What names the cache in the comments, whichever URL a client uses.
    name: String,
    substituter: String,
    keys: Vec<String>,
    /// Whether it is to be the only cache.
    only: bool,
}

impl Client {
    /// The cache at `url`, `s3://…` or `http(s)://…`; with `https`, an `s3://` URL stands for the bucket's plain one.
    ///
    /// # Errors
    /// A usage failure for a URL of another kind, one that nix.conf cannot hold, and one with a secret in it.
    pub fn new(url: &str, https: bool, keys: &[PublicKey], only: bool) -> Result<Self> {
        if url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
            return Err(Error::failed(format!(
                "{:?}: nix.conf cannot hold white space or #; write %20, %23",
                shown(url)
            )));
        }
        // Nix takes no other letters in a URL.
        let url = utf8_percent_encode(url, CONTROLS).to_string();
        let (name, substituter) = match url.split_once("://") {
            Some(("s3", _)) => {
                let location = Location::parse(&url)?;
                (name_of(&url), if https { https_url(&location) } else { url })
            }
            Some(("http" | "https", rest)) if !rest.starts_with(['/', '?']) && !rest.is_empty() => {
                check_plain(&url)?;
                (name_of(&url), url.trim_end_matches('/').to_owned())
            }
            _ => return Err(Error::failed(format!("{:?} is not a cache: expected s3:// or https://", shown(&url)))),
        };
        let mut distinct: Vec<String> = Vec::new();
        for key in keys.iter().map(ToString::to_string) {
            if !distinct.contains(&key) {
                distinct.push(key);
            }
        }
        Ok(Self { name, substituter, keys: distinct, only })
    }

    /// All its lines.
    #[must_use]
    pub fn lines(&self) -> String {
        let extra = if self.only { "" } else { "extra-" };
        format!("{extra}substituters = {}\n{extra}trusted-public-keys = {}\n", self.substituter, self.keys.join(" "))
    }

    /// The lines that say what `settings` lack.
    fn lines_beyond(&self, settings: &Settings) -> String {
        if self.only {
            return if self.in_effect(settings) { String::new() } else { self.lines() };
        }
        let mut lines = String::new();
        if !has_cache(settings, &self.substituter) {
            lines.push_str("extra-substituters = ");
            lines.push_str(&self.substituter);
            lines.push('\n');
        }
        let missing: Vec<&str> =
            self.keys.iter().filter(|key| !settings.trusted_public_keys.contains(key)).map(String::as_str).collect();
        if !missing.is_empty() {
            lines.push_str("extra-trusted-public-keys = ");
            lines.push_str(&missing.join(" "));
            lines.push('\n');
        }
        lines
    }

    /// Whether a client with these settings uses the cache as it should.
    fn in_effect(&self, settings: &Settings) -> bool {
        let all = has_cache(settings, &self.substituter)
            && self.keys.iter().all(|key| settings.trusted_public_keys.contains(key));
        let alone = settings.substituters.iter().all(|url| same_cache(url, &self.substituter))
            && settings.trusted_public_keys.iter().all(|key| self.keys.contains(key));
        all && (alone || !self.only)
    }

    /// The text with the lines merged into it; `path` is where Nix reads it, for what it includes.
    ///
    /// # Errors
    /// Refuses text in which somebody cut the comments apart; fails when it includes a file that is not there.
    pub fn merge(&self, text: &[u8], path: &Path) -> Result<Vec<u8>> {
        let settings = |text: &[u8]| reading(text, path).map(|reading| reading.settings);
        let rest = self.without(text)?;
        let lines = self.lines_beyond(&settings(&rest)?);
        let there = self.block(text)?.map(|block| block.lines(text));
        if there.unwrap_or_default() == lines.as_bytes() && self.in_effect(&settings(text)?) {
            return Ok(text.to_vec());
        }
        if lines.is_empty() {
            return Ok(rest);
        }
        let mut merged = rest;
        // A file that ended without a line feed does so again, and without the lines is what it was.
        let open = !merged.is_empty() && !merged.ends_with(b"\n");
        if open {
            merged.push(b'\n');
        }
        merged.extend_from_slice(format!("{}\n{lines}{}", self.begin(), self.end()).as_bytes());
        if !open {
            merged.push(b'\n');
        }
        if !self.in_effect(&settings(&merged)?) {
            return Err(Error::refused("the lines would have no effect there"));
        }
        Ok(merged)
    }

    /// The text without the lines.
    ///
    /// # Errors
    /// Refuses text in which somebody cut the comments apart.
    pub fn without(&self, text: &[u8]) -> Result<Vec<u8>> {
        let Some(block) = self.block(text)? else { return Ok(text.to_vec()) };
        let mut start = block.start;
        if block.end == text.len() && !text.ends_with(b"\n") && start > 0 {
            start -= 1;
        }
        Ok([&text[..start], &text[block.end..]].concat())
    }

    fn begin(&self) -> String {
        format!("# cache-policy begin {}", self.name)
    }

    fn end(&self) -> String {
        format!("# cache-policy end {}", self.name)
    }

    fn block(&self, text: &[u8]) -> Result<Option<Block>> {
        let (begin, end) = (self.begin(), self.end());
        let (mut at, mut block, mut inside) = (0, None, None);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let bare = line.trim_ascii_end();
            let next = at + line.len();
            if bare == begin.as_bytes() {
                if inside.is_some() || block.is_some() {
                    return Err(Error::refused(format!("the line {begin:?} is there twice")));
                }
                inside = Some((at, next));
            } else if bare == end.as_bytes() {
                let Some((start, lines)) = inside.take() else {
                    return Err(Error::refused(format!("the line {end:?} has no beginning")));
                };
                block = Some(Block { start, lines, lines_end: at, end: next });
            }
            at = next;
        }
        match inside {
            None => Ok(block),
            Some(_) => Err(Error::refused(format!("the line {begin:?} has no end"))),
        }
    }

    /// Merges the lines into a file; says whether it changed.
    ///
    /// # Errors
    /// As [`Client::merge`]; fails when the file cannot be read or replaced.
    pub fn write(&self, path: &Path) -> Result<bool> {
        edit(path, |text| self.merge(text, path))
    }

    /// Takes the lines out of a file; says whether it changed. A file that has nothing else stays, empty.
    ///
    /// # Errors
    /// As [`Client::without`]; fails when the file cannot be read or replaced.
    pub fn remove(&self, path: &Path) -> Result<bool> {
        if real_path(path)?.is_none() {
            return Ok(false);
        }
        edit(path, |text| self.without(text))
    }

    /// What a client reads in a file and in what it includes.
    ///
    /// # Errors
    /// Fails when the file cannot be read or includes one that is not there.
    pub fn look(&self, path: &Path) -> Result<Look> {
        let text = real_path(path)?.map(|real| read(&real)).transpose().context(|| reads(path))?;
        let Reading { settings, illegal } = reading(&text.unwrap_or_default(), path)?;
        Ok(Look { names_the_cache: has_cache(&settings, &self.substituter), illegal })
    }
}

/// What a client reads in a nix.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Whether the cache is among the substituters.
    pub names_the_cache: bool,
    /// Lines for the sake of which Nix refuses the file, each with its file.
    pub illegal: Vec<String>,
}

fn reading(text: &[u8], path: &Path) -> Result<Reading> {
    Reading::of_text(&String::from_utf8_lossy(text), path)
}

/// Where the lines are in a file: from `start` to `end` with their comments.
#[derive(Debug, Clone, Copy)]
struct Block {
    start: usize,
    lines: usize,
    lines_end: usize,
    end: usize,
}

impl Block {
    fn lines(self, text: &[u8]) -> &[u8] {
        &text[self.lines..self.lines_end]
    }
}

fn has_cache(settings: &Settings, url: &str) -> bool {
    settings.substituters.iter().any(|other| same_cache(other, url))
}

fn same_cache(one: &str, other: &str) -> bool {
    name_of(one) == name_of(other)
}

/// What names a cache whatever else its URL says: parameters such as `priority` and a slash at the end do not count. Of
/// a bucket, the service counts too.
fn name_of(url: &str) -> String {
    if let Ok(location) = Location::parse(url) {
        let place = format!("s3://{}/{}", location.bucket, utf8_percent_encode(&location.prefix, PATH));
        let endpoint = location.endpoint.map(|endpoint| format!("?endpoint={}", endpoint.to_ascii_lowercase()));
        return format!("{}{}", place.trim_end_matches('/'), endpoint.unwrap_or_default());
    }
    let place = place(url).trim_end_matches('/');
    match place.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{}://{}{path}", scheme.to_ascii_lowercase(), host.to_ascii_lowercase())
        }
        None => place.to_owned(),
    }
}

/// A URL for messages: without what may be a password.
fn shown(url: &str) -> String {
    let place = place(url);
    place.rfind('@').map_or_else(|| place.to_owned(), |at| format!("…{}", &place[at..]))
}

/// A URL without its parameters, which may be secret.
fn place(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// Everybody may read nix.conf, and Nix sends no parameter to the server.
fn check_plain(url: &str) -> Result {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    if place.contains('@') {
        return Err(Error::failed("a URL in nix.conf is for everybody to read; put the password into netrc"));
    }
    // Every binary cache has the parameters of a bucket.
    if Location::parse(&format!("s3://bucket?{query}")).is_err() {
        return Err(Error::failed(format!(
            "{place}?…: a parameter that Nix does not know; it sends none, and everybody may read nix.conf: put what is \
             secret into netrc"
        )));
    }
    Ok(())
}

/// The bucket's plain URL, in path style or virtual-host style as requests to it are.
fn https_url(location: &Location) -> String {
    let scheme = if location.plain_http { "http" } else { "https" };
    let host = location.endpoint.clone().unwrap_or_else(|| {
        let region = location.region.as_deref().unwrap_or(DEFAULT_REGION);
        let china = if region.starts_with("cn-") { ".cn" } else { "" };
        format!("s3.{region}.amazonaws.com{china}")
    });
    let path_style = location.path_style()
        || (location.addressing == Addressing::Auto && location.endpoint.is_none() && location.bucket.contains('.'));
    let place = if path_style { format!("{host}/{}", location.bucket) } else { format!("{}.{host}", location.bucket) };
    let prefix = utf8_percent_encode(location.prefix.trim_end_matches('/'), PATH);
    format!("{scheme}://{place}/{prefix}").trim_end_matches('/').to_owned()
}

fn reads(path: &Path) -> String {
    format!("reading {}", path.display())
}

fn writes(path: &Path) -> String {
    format!("writing {}", path.display())
}

/// Where a file really is; none when it is not there. A link is followed: to replace it would cut it off from what it
/// links to.
fn real_path(path: &Path) -> Result<Option<PathBuf>> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(Some(real)),
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => Ok(None),
        Err(error) => Err(Error::from(error).context(reads(path))),
    }
}

fn read(real: &Path) -> Result<Vec<u8>> {
    let about = fs::metadata(real)?;
    if !about.is_file() || about.len() > MAX_SIZE {
        return Err(Error::refused(format!("not a file of at most {MAX_SIZE} bytes")));
    }
    Ok(fs::read(real)?)
}

/// Replaces a file by what `change` makes of it, at once or not at all; says whether that is something else.
fn edit(path: &Path, change: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<bool> {
    let real = real_path(path)?.unwrap_or_else(|| path.to_owned());
    let place = Place::lock(&real).map_err(Error::from).context(|| writes(path))?;
    // Another may have made or changed it while this waited.
    let text = real_path(path)?.map(|real| read(&real)).transpose().context(|| reads(path))?.unwrap_or_default();
    let changed = change(&text).context(|| path.display())?;
    if changed == text {
        return Ok(false);
    }
    place.replace(&changed).map_err(Error::from).context(|| writes(path))?;
    Ok(true)
}

/// Where a file is replaced. Others who merge into a file of the same directory wait until it is dropped.
struct Place<'a> {
    file: &'a Path,
    dir: &'a Path,
    /// Open for its lock, and to be written out.
    open: File,
    /// What the names of its temporary files begin with.
    prefix: OsString,
}

impl<'a> Place<'a> {
    fn lock(file: &'a Path) -> io::Result<Self> {
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut prefix = OsString::from(".");
        prefix.push(file.file_name().unwrap_or(OsStr::new("nix.conf")));
        prefix.push(".cache-policy.");
        let place = Self { file, dir, open: File::open(dir)?, prefix };
        // The directory itself, so that no lock file stays. Network file systems may lock none: then everything is as
        // it was without a lock.
        if place.open.lock().is_ok() {
            place.sweep();
        }
        Ok(place)
    }

    /// Removes what a process left that was killed; whoever lives has the lock.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.dir) else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(self.prefix.as_encoded_bytes()) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        // The error names the temporary file, which says nothing to the user.
        let unnamed = |error: io::Error| io::Error::from(error.kind());
        let mut temporary = tempfile::Builder::new().prefix(&self.prefix).tempfile_in(self.dir).map_err(unnamed)?;
        let file = temporary.as_file_mut();
        file.write_all(text)?;
        let mut mode = MODE;
        if let Ok(about) = fs::metadata(self.file) {
            mode = about.mode() & 0o7777;
            let new = file.metadata()?;
            if (new.uid(), new.gid()) != (about.uid(), about.gid()) {
                fchown(&*file, Some(about.uid()), Some(about.gid()))?;
            }
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        temporary.persist(self.file).map_err(|error| error.error)?;
        self.open.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";

    fn client(url: &str) -> Client {
        Client::new(url, false, &[PublicKey::parse(KEY).unwrap()], false).unwrap()
    }

    fn merged(client: &Client, text: &str) -> String {
        String::from_utf8(client.merge(text.as_bytes(), Path::new("/etc/nix/nix.conf")).unwrap()).unwrap()
    }

    #[test]
    fn plain_urls_of_services() {
        for (url, plain) in [
            ("s3://my-cache?region=eu-west-2", "https://my-cache.s3.eu-west-2.amazonaws.com"),
            ("s3://my-cache/a/b", "https://my-cache.s3.us-east-1.amazonaws.com/a/b"),
            ("s3://my.cache?region=eu-west-2", "https://s3.eu-west-2.amazonaws.com/my.cache"),
            ("s3://my-cache?region=cn-north-1", "https://my-cache.s3.cn-north-1.amazonaws.com.cn"),
            ("s3://my-cache/x?endpoint=minio.example.org:9000", "https://minio.example.org:9000/my-cache/x"),
            ("s3://my-cache?endpoint=127.0.0.1:9000&scheme=http", "http://127.0.0.1:9000/my-cache"),
            ("s3://my-cache?endpoint=s3.example.org&addressing-style=virtual", "https://my-cache.s3.example.org"),
        ] {
            assert_eq!(https_url(&Location::parse(url).unwrap()), plain, "{url}");
        }
    }

    #[test]
    fn only_what_is_lacking_is_added() {
        let client = client("https://cache.example.org/");
        let key_there = format!("trusted-public-keys = {KEY}\n");
        let with_key = merged(&client, &key_there);
        assert!(with_key.starts_with(&key_there) && !with_key.contains("extra-trusted"), "{with_key}");
        let all_there = format!("{key_there}extra-substituters = https://cache.example.org\n");
        assert_eq!(merged(&client, &all_there), all_there);
        // What comes later takes it back: the lines move to the end.
        let shadowed = format!("{}substituters = https://cache.nixos.org\n", merged(&client, ""));
        let again = merged(&client, &shadowed);
        assert!(again.starts_with("substituters =") && again.ends_with(&merged(&client, "")), "{again}");
    }

    #[test]
    fn only_this_cache_replaces_all_others() {
        let only = Client { only: true, ..client("https://cache.example.org") };
        let text = merged(&only, "extra-substituters = https://other.example.org\n");
        let settings = Reading::of_text(&text, Path::new("/x")).unwrap().settings;
        assert_eq!((settings.substituters, settings.trusted_public_keys), (vec![only.substituter], vec![KEY.into()]));
    }

    #[test]
    fn prefixes_are_encoded() {
        for (url, plain) in [
            ("s3://my-cache/ü/%20+?endpoint=h", "https://h/my-cache/%C3%BC/%20%2B"),
            ("s3://my-cache/a%3fb%23c%25d/?endpoint=h", "https://h/my-cache/a%3Fb%23c%25d"),
        ] {
            let keys = [PublicKey::parse(KEY).unwrap()];
            let client = Client::new(url, true, &keys, false).unwrap();
            assert_eq!(client.substituter, plain, "{url}");
            assert!(client.begin().is_ascii() && !client.begin().contains("begin  "), "{}", client.begin());
        }
        assert_eq!(client("s3://my-cache/ü").substituter, "s3://my-cache/%C3%BC");
        assert_eq!(client("https://h/ü").substituter, "https://h/%C3%BC");
    }

    #[test]
    fn slightly_different_urls_are_one_cache() {
        for same in [
            &["https://h/c", "https://h/c/", "https://h/c?priority=10", "https://h/c/?trusted=1", "HTTPS://H/c"][..],
            &[
                "s3://bucket/p",
                "s3://bucket/p/",
                "s3://bucket/p?region=eu-west-2",
                "s3://bucket/p?priority=3&profile=x",
            ],
            &["s3://bucket?endpoint=h", "s3://bucket/?endpoint=https://H/&region=auto"],
        ] {
            for one in same {
                for other in same {
                    assert!(same_cache(one, other), "{one} {other}");
                }
            }
        }
        for (one, other) in [
            ("https://h/c", "https://h/C"),
            ("https://h/c", "http://h/c"),
            ("s3://bucket/p", "s3://bucket/q"),
            ("s3://bucket", "s3://bucket?endpoint=h"),
            ("s3://bucket", "https://bucket"),
        ] {
            assert!(!same_cache(one, other), "{one} {other}");
        }
        // Written anew it takes the place of the first; what a hand wrote is left, and not said again.
        let first = merged(&client("https://h/c?priority=10"), "a = b\n");
        let second = merged(&client("https://h/c/?priority=20"), &first);
        assert_eq!(second, first.replace("=10", "=20").replace("/c?", "/c/?"));
        let by_hand = format!("substituters = https://h/c?priority=10\ntrusted-public-keys = {KEY}\n");
        assert_eq!(merged(&client("https://h/c"), &by_hand), by_hand);
    }

    #[test]
    fn what_was_cut_apart_is_refused() {
        let client = client("s3://my-cache");
        let path = Path::new("/etc/nix/nix.conf");
        let whole = merged(&client, "");
        for text in [whole.replace(&client.end(), ""), whole.replace(&client.begin(), ""), whole.repeat(2)] {
            assert!(client.merge(text.as_bytes(), path).unwrap_err().is_refusal(), "{text}");
        }
    }

    #[test]
    fn lines_that_nix_refuses_and_backslashes_stay_as_they_are() {
        let client = client("https://cache.example.org");
        for text in ["no setting\n", "a=b", "substituters = a \\", "substituters = \\\n", "\\"] {
            let all = merged(&client, text);
            assert!(all.starts_with(text), "{text:?}");
            let settings = Reading::of_text(&all, Path::new("/x")).unwrap().settings;
            assert!(client.in_effect(&settings), "{all}");
            assert_eq!(client.without(all.as_bytes()).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn what_nix_conf_cannot_hold_is_refused() {
        let keys = [PublicKey::parse(KEY).unwrap()];
        for url in [
            "https://a b",
            "https://a#b",
            "https://a\nb",
            "https://a\u{3000}b",
            "https://",
            "https:///a",
            "https://?priority=1",
            "ftp://a",
            "my-cache",
            "https://u:hidden@host",
            "https://host?token=hidden",
            "https://host/x?priority=1&sig=hidden",
            "s3://bucket?token=hidden",
            "https://host?x#hidden",
        ] {
            let failure = Client::new(url, false, &keys, false).unwrap_err();
            assert!(failure.exit_code() == 2 && !failure.message().contains("hidden"), "{url:?}: {failure}");
        }
    }
}
