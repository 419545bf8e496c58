//! Audits a whole cache in a directory with none of the code under test: is it closed, and does each narinfo match its
//! NAR?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use cache_tests::sha256_base32;

/// The contents of a cache, and the problems found in it.
#[derive(Default)]
pub struct Audit {
    /// Store paths with a narinfo.
    pub paths: BTreeSet<String>,
    /// Number of all objects.
    pub objects: usize,
    /// The problems, one line each.
    pub problems: Vec<String>,
}

/// The fields of a narinfo.
type Fields = BTreeMap<String, String>;

/// The hash and the size of each NAR by its name.
type Nars = BTreeMap<String, (String, usize)>;

/// Audits the cache in `dir`.
///
/// # Errors
/// If a file cannot be read.
pub fn audit(dir: &Path) -> Result<Audit, String> {
    let top = file_names(dir)?;
    let nars = hash_nars(&dir.join("nar"))?;
    let mut audit = Audit { objects: top.len() + nars.len(), ..Audit::default() };
    for (nar, (hash, _)) in &nars {
        if nar.split('.').next() != Some(hash) {
            audit.problems.push(format!("nar/{nar} has the hash {hash}"));
        }
    }
    let mut references = Vec::new();
    for name in top.iter().filter(|name| name.ends_with(".narinfo")) {
        let text = fs::read_to_string(dir.join(name)).map_err(|error| format!("cannot read {name}: {error}"))?;
        match parse(&text).and_then(|fields| check_narinfo(&fields, name, &nars)) {
            Ok((path, own)) => {
                references.extend(own.into_iter().map(|reference| (path.clone(), reference)));
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
    let info = fs::read_to_string(dir.join("nix-cache-info")).unwrap_or_default();
    let has_store_dir = info.lines().any(|line| line == "StoreDir: /nix/store");
    if !has_store_dir && top.iter().any(|name| name.ends_with(".narinfo")) {
        audit.problems.push("there are narinfos, but no nix-cache-info with the store directory".to_owned());
    }
    Ok(audit)
}

/// Parses `Field: value` lines; only `Sig` may be repeated.
fn parse(text: &str) -> Result<Fields, String> {
    let mut fields = Fields::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { return Err(format!("invalid line {line:?}")) };
        let repeated = fields.insert(name.to_owned(), value.trim().to_owned()).is_some();
        if repeated && name != "Sig" {
            return Err(format!("duplicate field {name}"));
        }
    }
    if text.ends_with('\n') { Ok(fields) } else { Err("no newline at the end".to_owned()) }
}

/// Checks a narinfo against its name and its NAR; returns its path and its references.
fn check_narinfo(fields: &Fields, name: &str, nars: &Nars) -> Result<(String, Vec<String>), String> {
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
    let (hash, size) = nars.get(nar).ok_or_else(|| format!("its NAR {url} is missing"))?;
    if *field("FileHash")? != format!("sha256:{hash}") {
        return Err(format!("{url} has the hash {hash}"));
    }
    if *field("FileSize")? != size.to_string() {
        return Err(format!("{url} has {size} bytes"));
    }
    Ok((path.clone(), field("References")?.split_whitespace().map(str::to_owned).collect()))
}

/// Returns the names of the files in a directory, which may be missing.
fn file_names(dir: &Path) -> Result<BTreeSet<String>, String> {
    if !dir.exists() {
        return Ok(BTreeSet::new());
    }
    let entries = fs::read_dir(dir).map_err(|error| format!("cannot list {}: {error}", dir.display()))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    Ok(files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn hash_nars(dir: &Path) -> Result<Nars, String> {
    let hash = |name: String| {
        let bytes = fs::read(dir.join(&name)).map_err(|error| format!("cannot read {name}: {error}"))?;
        Ok((name, (sha256_base32(&bytes), bytes.len())))
    };
    file_names(dir)?.into_iter().map(hash).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use cache_tests::{Scratch, sha256_base32};

    use super::{audit, file_names, parse};

    const NAME: &str = "00000000000000000000000000000000.narinfo";

    /// Writes a cache with one path, which refers to itself; returns its narinfo.
    fn write_cache(dir: &Path) -> String {
        let base = "00000000000000000000000000000000-x";
        fs::create_dir_all(dir.join("nar")).unwrap();
        let hash = sha256_base32(b"bytes");
        fs::write(dir.join(format!("nar/{hash}.nar.zst")), "bytes").unwrap();
        fs::write(dir.join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
        format!(
            "StorePath: /nix/store/{base}\nURL: nar/{hash}.nar.zst\nFileHash: sha256:{hash}\nFileSize: 5\n\
             NarHash: sha256:{hash}\nNarSize: 9\nReferences: {base}\nSig: x:y\n"
        )
    }

    fn problems_of(narinfo: &str, damage: impl Fn(&Path)) -> Vec<String> {
        let scratch = Scratch::new();
        let dir = scratch.dir("cache");
        write_cache(&dir);
        fs::write(dir.join(NAME), narinfo).unwrap();
        damage(&dir);
        audit(&dir).unwrap().problems
    }

    #[test]
    fn every_damage_to_a_cache_is_found() {
        let scratch = Scratch::new();
        let good = write_cache(&scratch.dir("cache"));
        let no_damage = |_: &Path| ();
        assert_eq!(problems_of(&good, no_damage), [""; 0]);
        let nar = |dir: &Path| dir.join("nar").join(file_names(&dir.join("nar")).unwrap().first().unwrap());
        let damaged = [
            problems_of(&good, |dir| fs::remove_file(nar(dir)).unwrap()),
            problems_of(&good, |dir| fs::write(nar(dir), "other").unwrap()),
            problems_of(&good, |dir| fs::remove_file(dir.join("nix-cache-info")).unwrap()),
            problems_of(&good[..good.len() - 9], no_damage),
            problems_of(&good.replace("References: 0", "References: 11111111111111111111111111111111-y 0"), no_damage),
            problems_of(&good.replace("FileSize: 5", "FileSize: 6"), no_damage),
            problems_of(&good.replace("store/0", "store/1"), no_damage),
        ];
        for (number, problems) in damaged.iter().enumerate() {
            assert!(!problems.is_empty(), "damage {number} was not found");
        }
    }

    #[test]
    fn a_truncated_narinfo_is_invalid() {
        assert!(parse("StorePath: /nix/store/x\nURL: nar/x\n").is_ok());
        assert!(parse("StorePath: /nix/store/x\nURL: nar").is_err());
        assert!(parse("URL: a\nURL: b\n").is_err());
    }
}
