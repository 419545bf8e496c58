//! Reads a whole cache that lies in a directory, with none of our tools: is everything there that must be?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::session::{command, output};

/// Nix's alphabet: no e, o, t and u.
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// What is in a cache, and what is wrong with it.
#[derive(Default)]
pub struct Audit {
    /// Store paths with a narinfo.
    pub paths: BTreeSet<String>,
    /// All objects.
    pub objects: usize,
    /// What must not be, one line each.
    pub problems: Vec<String>,
}

/// A narinfo's fields.
type Fields = BTreeMap<String, String>;

/// Reads the cache in `dir`.
pub fn audit(dir: &Path) -> Result<Audit, String> {
    let top = names(dir)?;
    let nars = names(&dir.join("nar"))?;
    let hashes = hashes(&dir.join("nar"), &nars)?;
    let mut audit = Audit { objects: top.len() + nars.len(), ..Audit::default() };
    for (nar, hash) in &hashes {
        if nar.split('.').next() != Some(hash) {
            audit.problems.push(format!("nar/{nar} has the hash {hash}"));
        }
    }
    let mut references = Vec::new();
    for name in top.iter().filter(|name| name.ends_with(".narinfo")) {
        let text = fs::read_to_string(dir.join(name)).map_err(|error| format!("cannot read {name}: {error}"))?;
        let examined = parse(&text).and_then(|fields| examine(&fields, name, &dir.join("nar"), &hashes));
        match examined {
            Ok((path, named)) => {
                references.extend(named.into_iter().map(|reference| (path.clone(), reference)));
                audit.paths.insert(path);
            }
            Err(problem) => audit.problems.push(format!("{name}: {problem}")),
        }
    }
    for (path, reference) in references {
        if !top.contains(&format!("{}.narinfo", &reference[..32.min(reference.len())])) {
            audit.problems.push(format!("{path} references {reference}, which has no narinfo"));
        }
    }
    audit.check_info(dir, &top);
    Ok(audit)
}

impl Audit {
    /// A cache with narinfos says of which store it is.
    fn check_info(&mut self, dir: &Path, top: &BTreeSet<String>) {
        let info = fs::read_to_string(dir.join("nix-cache-info")).unwrap_or_default();
        let said = info.lines().any(|line| line == "StoreDir: /nix/store");
        if !said && top.iter().any(|name| name.ends_with(".narinfo")) {
            self.problems.push("there are narinfos, but no nix-cache-info with the store directory".to_owned());
        }
    }
}

/// `Field: value` lines, each field but `Sig` once.
fn parse(text: &str) -> Result<Fields, String> {
    let mut fields = Fields::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { return Err(format!("the line {line:?}")) };
        let twice = fields.insert(name.to_owned(), value.trim().to_owned()).is_some();
        if twice && name != "Sig" {
            return Err(format!("two fields {name}"));
        }
    }
    if text.ends_with('\n') { Ok(fields) } else { Err("no newline in the end".to_owned()) }
}

/// Checks what a narinfo says of itself and its NAR; returns its path and what it references.
fn examine(
    fields: &Fields,
    name: &str,
    nars: &Path,
    hashes: &BTreeMap<String, String>,
) -> Result<(String, Vec<String>), String> {
    let field = |name: &str| fields.get(name).ok_or_else(|| format!("no {name}"));
    let path = field("StorePath")?;
    let base = path.strip_prefix("/nix/store/").ok_or_else(|| format!("StorePath {path:?}"))?;
    if base.split('-').next() != name.strip_suffix(".narinfo") {
        return Err(format!("it describes {path}"));
    }
    field("Sig")?;
    let hash = field("NarHash")?.strip_prefix("sha256:").unwrap_or_default();
    if hash.len() != 52 || field("NarSize")?.parse::<u64>().is_err() {
        return Err("NarHash or NarSize is malformed".to_owned());
    }
    let url = field("URL")?;
    let nar = url.strip_prefix("nar/").ok_or_else(|| format!("URL {url:?}"))?;
    let hash = hashes.get(nar).ok_or_else(|| format!("its NAR {url} is not there"))?;
    if *field("FileHash")? != format!("sha256:{hash}") {
        return Err(format!("{url} has the hash {hash}"));
    }
    let size = fs::metadata(nars.join(nar)).map_err(|error| format!("{url}: {error}"))?.len();
    if *field("FileSize")? != size.to_string() {
        return Err(format!("{url} has {size} bytes"));
    }
    Ok((path.clone(), field("References")?.split_whitespace().map(str::to_owned).collect()))
}

/// The names of the files in a directory, which need not be there.
fn names(dir: &Path) -> Result<BTreeSet<String>, String> {
    if !dir.exists() {
        return Ok(BTreeSet::new());
    }
    let entries = fs::read_dir(dir).map_err(|error| format!("cannot list {}: {error}", dir.display()))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    Ok(files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// SHA-256 of each file in Nix's base 32, by `sha256sum`.
fn hashes(dir: &Path, names: &BTreeSet<String>) -> Result<BTreeMap<String, String>, String> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let paths: Vec<PathBuf> = names.iter().map(|name| Path::new(".").join(name)).collect();
    let listing = output(command("sha256sum").current_dir(dir).args(paths))?;
    let hash = |line: &str| {
        let (hex, name) = line.split_once("  ./")?;
        Some((name.to_owned(), nix_base32(&from_hex(hex)?)))
    };
    let hashes: Option<BTreeMap<_, _>> = listing.lines().map(hash).collect();
    hashes.filter(|hashes| hashes.len() == names.len()).ok_or_else(|| "cannot read what sha256sum says".to_owned())
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    (0..hex.len() / 2).map(|index| u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()).collect()
}

/// Nix's base 32: five bits a digit, the last ones first.
fn nix_base32(bytes: &[u8]) -> String {
    let digits = (bytes.len() * 8).div_ceil(5);
    let digit = |index: usize| {
        let (byte, bit) = (index * 5 / 8, index * 5 % 8);
        let low = u16::from(bytes[byte]) >> bit;
        let high = bytes.get(byte + 1).map_or(0, |&next| u16::from(next) << (8 - bit));
        char::from(ALPHABET[usize::from((low | high) & 31)])
    };
    (0..digits).rev().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{audit, from_hex, hashes, names, nix_base32, parse};
    use crate::session::Temporary;

    const NAME: &str = "00000000000000000000000000000000.narinfo";

    /// A cache with one path, which refers to itself.
    fn cache(dir: &Path) -> String {
        let base = "00000000000000000000000000000000-x";
        fs::create_dir_all(dir.join("nar")).unwrap();
        fs::write(dir.join("nar/draft"), "bytes").unwrap();
        let hash = hashes(&dir.join("nar"), &names(&dir.join("nar")).unwrap()).unwrap().remove("draft").unwrap();
        fs::rename(dir.join("nar/draft"), dir.join(format!("nar/{hash}.nar.zst"))).unwrap();
        fs::write(dir.join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
        format!(
            "StorePath: /nix/store/{base}\nURL: nar/{hash}.nar.zst\nFileHash: sha256:{hash}\nFileSize: 5\n\
             NarHash: sha256:{hash}\nNarSize: 9\nReferences: {base}\nSig: x:y\n"
        )
    }

    fn problems_of(narinfo: &str, spoil: impl Fn(&Path)) -> Vec<String> {
        let dir = Temporary::new("audit").unwrap();
        cache(&dir.path);
        fs::write(dir.path.join(NAME), narinfo).unwrap();
        spoil(&dir.path);
        audit(&dir.path).unwrap().problems
    }

    #[test]
    fn a_broken_cache_is_seen() {
        let dir = Temporary::new("audit").unwrap();
        let good = cache(&dir.path);
        let sound = |_: &Path| ();
        assert_eq!(problems_of(&good, sound), [""; 0]);
        let only_nar = |dir: &Path| dir.join("nar").join(names(&dir.join("nar")).unwrap().first().unwrap());
        let spoiled = [
            problems_of(&good, |dir| fs::remove_file(only_nar(dir)).unwrap()),
            problems_of(&good, |dir| fs::write(only_nar(dir), "other").unwrap()),
            problems_of(&good, |dir| fs::remove_file(dir.join("nix-cache-info")).unwrap()),
            problems_of(&good[..good.len() - 9], sound),
            problems_of(&good.replace("References: 0", "References: 11111111111111111111111111111111-y 0"), sound),
            problems_of(&good.replace("FileSize: 5", "FileSize: 6"), sound),
            problems_of(&good.replace("store/0", "store/1"), sound),
        ];
        for (number, problems) in spoiled.iter().enumerate() {
            assert!(!problems.is_empty(), "damage {number} was not seen");
        }
    }

    #[test]
    fn hashes_are_written_as_nix_does() {
        // nix hash to-base32 --type sha256 $(sha256sum </dev/null)
        let empty = from_hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").unwrap();
        assert_eq!(nix_base32(&empty), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    }

    #[test]
    fn half_a_narinfo_is_none() {
        assert!(parse("StorePath: /nix/store/x\nURL: nar/x\n").is_ok());
        assert!(parse("StorePath: /nix/store/x\nURL: nar").is_err());
        assert!(parse("URL: a\nURL: b\n").is_err());
    }
}
