//! The lines of nix.conf that make a client use a cache, and their way into a file and out of it.
//!
//! They stand at the end of the file between two comments that name the cache, so that they come after whatever the file
//! includes, and can be found again. Nothing else in the file is touched, whatever bytes it has.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use cache_sign::keys::PublicKey;
use cache_sign::nix_conf::{Settings, ends_open};
use nar_pack::stage::{Doing, Failure, Outcome};
use s3_push::location::{Addressing, DEFAULT_REGION, Location};

/// Longest nix.conf that is merged into, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Mode of a nix.conf that is new.
const MODE: u32 = 0o644;

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
    /// A usage failure for a URL of another kind, a refusal of one that nix.conf cannot hold.
    pub fn new(url: &str, https: bool, keys: &[PublicKey], only: bool) -> Outcome<Self> {
        let (name, substituter) = match url.split_once("://") {
            Some(("s3", _)) => {
                let location = Location::parse(url)?;
                (name_of(&location), if https { https_url(&location) } else { url.to_owned() })
            }
            Some(("http" | "https", rest)) if !rest.trim_matches('/').is_empty() => {
                let url = url.trim_end_matches('/').to_owned();
                (url.split('?').next().unwrap_or_default().to_owned(), url)
            }
            _ => return Err(Failure::failed(format!("{url:?} is not a cache: expected s3:// or https://"))),
        };
        if [&name, &substituter].iter().any(|text| text.contains(|c: char| !c.is_ascii_graphic() || c == '#')) {
            return Err(Failure::refused(format!(
                "{substituter:?}: nix.conf cannot hold white space or #; write %20, %23"
            )));
        }
        if substituter.split_once("://").is_some_and(|(_, rest)| rest.split('/').next().unwrap_or("").contains('@')) {
            return Err(Failure::refused("a URL in nix.conf is for everybody to read; put the password into netrc"));
        }
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

    /// The text with the lines merged into it; `path` is where it lies, for what it includes.
    ///
    /// # Errors
    /// Refuses text whose last line goes on, or in which somebody cut the comments apart.
    pub fn merge(&self, text: &[u8], path: &Path) -> Outcome<Vec<u8>> {
        let settings = |text: &[u8]| Settings::of_text(&String::from_utf8_lossy(text), path);
        let rest = self.without(text)?;
        let lines = self.lines_beyond(&settings(&rest)?);
        let there = self.block(text)?.map(|block| block.lines(text));
        if there.unwrap_or_default() == lines.as_bytes() && self.in_effect(&settings(text)?) {
            return Ok(text.to_vec());
        }
        if lines.is_empty() {
            return Ok(rest);
        }
        if ends_open(&String::from_utf8_lossy(&rest)) {
            return Err(Failure::refused("its last line ends in a backslash, and what follows would be joined to it"));
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
            return Err(Failure::refused("the lines would have no effect there"));
        }
        Ok(merged)
    }

    /// The text without the lines.
    ///
    /// # Errors
    /// Refuses text in which somebody cut the comments apart.
    pub fn without(&self, text: &[u8]) -> Outcome<Vec<u8>> {
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

    fn block(&self, text: &[u8]) -> Outcome<Option<Block>> {
        let (begin, end) = (self.begin(), self.end());
        let (mut at, mut block, mut inside) = (0, None, None);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let bare = line.trim_ascii_end();
            let next = at + line.len();
            if bare == begin.as_bytes() {
                if inside.is_some() || block.is_some() {
                    return Err(Failure::refused(format!("the line {begin:?} is there twice")));
                }
                inside = Some((at, next));
            } else if bare == end.as_bytes() {
                let Some((start, lines)) = inside.take() else {
                    return Err(Failure::refused(format!("the line {end:?} has no beginning")));
                };
                block = Some(Block { start, lines, lines_end: at, end: next });
            }
            at = next;
        }
        match inside {
            None => Ok(block),
            Some(_) => Err(Failure::refused(format!("the line {begin:?} has no end"))),
        }
    }

    /// Merges the lines into a file; says whether it changed.
    ///
    /// # Errors
    /// As [`Client::merge`]; fails when the file cannot be read or replaced.
    pub fn write(&self, path: &Path) -> Outcome<bool> {
        edit(path, |text, path| self.merge(text, path))
    }

    /// Takes the lines out of a file; says whether it changed.
    ///
    /// # Errors
    /// As [`Client::without`]; fails when the file cannot be read or replaced.
    pub fn remove(&self, path: &Path) -> Outcome<bool> {
        edit(path, |text, _| self.without(text))
    }

    /// Whether a file, with what it includes, still names the cache.
    ///
    /// # Errors
    /// Fails when what it includes cannot be read.
    pub fn is_named_in(&self, path: &Path) -> Outcome<bool> {
        let Some((text, path)) = read(path)? else { return Ok(false) };
        Ok(has_cache(&Settings::of_text(&String::from_utf8_lossy(&text), &path)?, &self.substituter))
    }
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
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// Bucket, prefix and service: what is the same whatever else the URL says.
fn name_of(location: &Location) -> String {
    let place = format!("s3://{}/{}", location.bucket, location.prefix);
    let place = place.trim_end_matches('/').replace(' ', "%20");
    match &location.endpoint {
        Some(endpoint) => format!("{place}?endpoint={endpoint}"),
        None => place,
    }
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
    let prefix: String =
        location.prefix.trim_end_matches('/').replace('%', "%25").replace(' ', "%20").replace('#', "%23");
    format!("{scheme}://{place}/{prefix}").trim_end_matches('/').to_owned()
}

/// The bytes of a file and where it really is; none when it is not there.
fn read(path: &Path) -> Outcome<Option<(Vec<u8>, PathBuf)>> {
    let at = || format!("reading {}", path.display());
    // A link is followed: to replace it would cut it off from what it links to.
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => return Ok(None),
        Err(error) => return Err(Failure::from(error).doing(at())),
    };
    let about = fs::metadata(&real).map_err(Failure::from).doing(at)?;
    if !about.is_file() || about.len() > MAX_SIZE {
        return Err(Failure::refused(format!("{}: not a file of at most {MAX_SIZE} bytes", path.display())));
    }
    Ok(Some((fs::read(&real).map_err(Failure::from).doing(at)?, real)))
}

/// Replaces a file by what `change` makes of it, at once or not at all; says whether that is something else.
fn edit(path: &Path, change: impl FnOnce(&[u8], &Path) -> Outcome<Vec<u8>>) -> Outcome<bool> {
    let (text, real) = read(path)?.unwrap_or_else(|| (Vec::new(), path.to_owned()));
    let changed = change(&text, &real).doing(|| path.display())?;
    if changed == text {
        return Ok(false);
    }
    replace(&real, &changed).map_err(Failure::from).doing(|| format!("writing {}", path.display()))?;
    Ok(true)
}

fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".nix.conf.").tempfile_in(dir)?;
    file.write_all(text)?;
    let mut mode = MODE;
    if let Ok(about) = fs::metadata(path) {
        mode = about.mode() & 0o7777;
        let new = file.as_file().metadata()?;
        if (new.uid(), new.gid()) != (about.uid(), about.gid()) {
            fchown(file.as_file(), Some(about.uid()), Some(about.gid()))?;
        }
    }
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
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
        let settings = Settings::of_text(&text, Path::new("/x")).unwrap();
        assert_eq!((settings.substituters, settings.trusted_public_keys), (vec![only.substituter], vec![KEY.into()]));
    }

    #[test]
    fn what_was_cut_apart_or_goes_on_is_refused() {
        let client = client("s3://my-cache");
        let path = Path::new("/etc/nix/nix.conf");
        let whole = merged(&client, "");
        for text in
            [whole.replace(&client.end(), ""), whole.replace(&client.begin(), ""), whole.repeat(2), "a = b \\".into()]
        {
            assert!(client.merge(text.as_bytes(), path).unwrap_err().is_refusal(), "{text}");
        }
    }

    #[test]
    fn what_nix_conf_cannot_hold_is_refused() {
        let keys = [PublicKey::parse(KEY).unwrap()];
        for url in ["https://a b", "https://a#b", "https://a\nb", "https://", "ftp://a", "my-cache", "https://u:p@host"]
        {
            assert!(Client::new(url, false, &keys, false).is_err(), "{url:?}");
        }
    }
}
