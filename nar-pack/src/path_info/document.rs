//! The output of `nix path-info --json`, in the form of every version of Nix.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::PathInfo;
use crate::error::{Context, Error, Result};
use crate::store_path::{StoreDir, StorePath};

/// Characters of a value that are quoted in an error.
const MAX_QUOTED_CHARS: usize = 60;

/// The versions of the schema `store-object-info` of Nix. Documents without a version are older.
const VERSIONS: RangeInclusive<u64> = 1..=3;

/// Parses the output of `nix path-info --json` in each of its forms: a list of objects, an object that maps store paths
/// or base names to objects, or such an object under `info`. Paths that it states to be invalid are left out. Hashes,
/// content addresses and signatures may be strings or objects (Nix's schemas `store-object-info-v2` and `-v3`).
///
/// # Errors
/// Refuses any other document, an unknown version, another store directory, and a valid path without `narHash` or
/// `references`. The error names the store path concerned.
pub fn parse_path_info(json: &str, store_dir: &StoreDir) -> Result<HashMap<StorePath, PathInfo>> {
    let document: Value =
        serde_json::from_str(json).map_err(|error| Error::refused(format!("invalid JSON: {error}")))?;
    require_known_version(&document)?;
    if let Some(other) = document.get("storeDir") {
        let dir = other.as_str().and_then(|dir| StoreDir::new(dir).ok());
        if dir.is_none_or(|dir| dir.as_str() != store_dir.as_str()) {
            return Err(Error::refused(format!("expected the store directory \"{store_dir}\", found {other}")));
        }
    }
    let document = document.get("info").unwrap_or(&document);
    let mut infos = HashMap::new();
    let mut add = |path: &str, entry: &Value| -> Result {
        // Nix before 2.19 prints `valid`, later versions print null.
        if entry.is_null() || entry.get("valid") == Some(&Value::Bool(false)) {
            return Ok(());
        }
        let info = parse_entry(entry, store_dir).context(|| path.to_owned())?;
        match infos.entry(parse_path_or_base_name(path, store_dir)?) {
            Entry::Vacant(entry) => _ = entry.insert(info),
            Entry::Occupied(entry) if *entry.get() == info => {}
            Entry::Occupied(_) => return Err(Error::refused(format!("{path}: two entries that differ"))),
        }
        Ok(())
    };
    match document {
        Value::Array(entries) => {
            for entry in entries {
                let path = entry.get("path").and_then(Value::as_str);
                add(path.ok_or_else(|| Error::refused("entry without path"))?, entry)?;
            }
        }
        Value::Object(entries) => {
            for (path, entry) in entries {
                add(path, entry)?;
            }
        }
        _ => return Err(Error::refused("expected a list or an object of store paths")),
    }
    Ok(infos)
}

/// Refuses a document or an entry of a version whose fields may have another meaning.
fn require_known_version(value: &Value) -> Result {
    match value.get("version") {
        Some(version) if !version.as_u64().is_some_and(|version| VERSIONS.contains(&version)) => {
            let (first, last) = (VERSIONS.start(), VERSIONS.end());
            Err(Error::refused(format!("unknown version {version} of path info: expected {first} to {last}")))
        }
        _ => Ok(()),
    }
}

/// Parses a full store path, or a base name as recent versions of Nix print it.
///
/// # Errors
/// Refuses any other text, and paths of another store directory.
pub fn parse_path_or_base_name(text: &str, store_dir: &StoreDir) -> Result<StorePath> {
    if text.starts_with('/') { store_dir.parse(text) } else { StorePath::from_base_name(text) }
}

fn parse_entry(entry: &Value, store_dir: &StoreDir) -> Result<PathInfo> {
    if !entry.is_object() {
        return Err(Error::refused("expected an object with the fields of a store path"));
    }
    require_known_version(entry)?;
    let string = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(Error::refused(format!("{key} must be a string"))),
    };
    let list = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Ok([].as_slice()),
        Some(Value::Array(items)) => Ok(items.as_slice()),
        Some(_) => Err(Error::refused(format!("{key} must be a list"))),
    };
    let reference = |path: &Value| {
        let path = path.as_str().ok_or_else(|| Error::refused("references must be strings"))?;
        parse_path_or_base_name(path, store_dir)
    };
    let missing = |key: &str| {
        let error = Error::refused(format!("missing field {key:?}"));
        error.with_hint("create the file with 'nix path-info --json', which prints every field")
    };
    let nar_hash = entry.get("narHash").map(parse_hash).transpose().context(|| "narHash")?.unwrap_or_default();
    if nar_hash.is_empty() {
        return Err(missing("narHash"));
    }
    if entry.get("references").is_none_or(Value::is_null) {
        return Err(missing("references"));
    }
    let nar_size = match entry.get("narSize") {
        None | Some(Value::Null) => None,
        Some(size) => Some(size.as_u64().ok_or_else(|| Error::refused("narSize must be a number of bytes"))?),
    };
    let mut references = list("references")?.iter().map(reference).collect::<Result<Vec<_>>>()?;
    references.sort_unstable();
    references.dedup();
    Ok(PathInfo {
        references,
        deriver: string("deriver")?.map(|path| parse_path_or_base_name(path, store_dir)).transpose()?,
        nar_hash,
        nar_size,
        ca: entry.get("ca").map(parse_ca).transpose().context(|| "ca")?.flatten().map(require_one_line).transpose()?,
        signatures: list("signatures")?.iter().map(parse_signature).collect::<Result<_>>()?,
    })
}

/// Parses a signature: a string as in a narinfo, or an object with `keyName` and `sig`.
fn parse_signature(value: &Value) -> Result<String> {
    let field = |key: &str| value.get(key).and_then(Value::as_str);
    let signature = match (value, field("keyName"), field("sig")) {
        (Value::String(text), ..) => text.clone(),
        (_, Some(key), Some(signature)) => format!("{key}:{signature}"),
        _ => return Err(Error::refused("a signature must be a string, or an object with keyName and sig")),
    };
    require_one_line(signature)
}

/// Refuses a value that would inject lines into a narinfo.
fn require_one_line(text: String) -> Result<String> {
    if text.contains(char::is_control) {
        let start: String = text.chars().take(MAX_QUOTED_CHARS).collect();
        return Err(Error::refused(format!("the value that starts with {start:?} contains a control character")));
    }
    Ok(text)
}

/// Parses a hash: a string with its algorithm, or an object with `algorithm` and `hash`.
fn parse_hash(value: &Value) -> Result<String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Object(_) => {
            let field = |key: &str| value.get(key).and_then(Value::as_str);
            let algorithm = field("algorithm").ok_or_else(|| Error::refused("hash without algorithm"))?;
            let hash = field("hash").ok_or_else(|| Error::refused("hash without digits"))?;
            // The digits may repeat the algorithm, as in SRI.
            let has_algorithm = hash.strip_prefix(algorithm).is_some_and(|rest| rest.starts_with(['-', ':']));
            Ok(if has_algorithm { hash.to_owned() } else { format!("{algorithm}:{hash}") })
        }
        _ => Err(Error::refused("a hash must be a string or an object")),
    }
}

/// Parses a content address: a string as in a narinfo, or an object with `method` and `hash`.
fn parse_ca(value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Value::Object(_) => {
            let prefix = match value.get("method").and_then(Value::as_str) {
                Some("text") => "text:",
                Some("flat") => "fixed:",
                Some("nar") => "fixed:r:",
                Some("git") => "fixed:git:",
                _ => return Err(Error::refused("unknown content-address method: expected text, flat, nar or git")),
            };
            match parse_hash(value.get("hash").unwrap_or(&Value::Null))?.as_str() {
                "" => Err(Error::refused("content address without hash")),
                hash => Ok(Some(format!("{prefix}{hash}"))),
            }
        }
        _ => Err(Error::refused("a content address must be a string or an object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "02dlwc21njky62v7q7ffcb10000n2grx-a";
    const B: &str = "h7jx3wrzn6m9vjl9604id854qx1xyqw6-b";

    fn parse(json: &str) -> Result<HashMap<StorePath, PathInfo>> {
        parse_path_info(json, &StoreDir::new("/nix/store").unwrap())
    }

    #[test]
    fn every_form_of_the_document_is_parsed() {
        let full = format!(
            r#""narHash":"sha256-x","references":["/nix/store/{B}","/nix/store/{A}"],"deriver":"/nix/store/{B}","signatures":["k:s"],"ca":null"#
        );
        let base = full.replace("/nix/store/", "");
        let forms = [
            format!(r#"[{{"path":"/nix/store/{A}",{full}}},{{"path":"/nix/store/{B}","valid":false}}]"#),
            format!(r#"{{"/nix/store/{A}":{{{full}}},"/nix/store/{B}":null}}"#),
            format!(r#"{{"{A}":{{{base}}}}}"#),
            format!(r#"{{"version":2,"storeDir":"/nix/store","info":{{"{A}":{{{base}}}}}}}"#),
            format!(
                r#"{{"version":3,"storeDir":"/nix/store","info":{{"{A}":{{{}}}}}}}"#,
                base.replace(r#""k:s""#, r#"{"keyName":"k","sig":"s"}"#)
            ),
        ];
        for form in forms {
            let infos = parse(&form).unwrap();
            let info = &infos[&StorePath::from_base_name(A).unwrap()];
            assert_eq!(infos.len(), 1, "{form}");
            assert_eq!(info.references.iter().map(StorePath::base_name).collect::<Vec<_>>(), [A, B]);
            assert_eq!((info.deriver.as_ref().unwrap().base_name(), info.ca.as_deref()), (B, None));
            assert_eq!(info.signatures, ["k:s"]);
        }
    }

    #[test]
    fn hashes_and_content_addresses_may_be_objects() {
        let one = |fields: &str| parse(&format!(r#"{{"version":2,"info":{{"{A}":{{{fields}}}}}}}"#));
        let sri = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let hash = format!(r#"{{"algorithm":"sha256","format":"base64","hash":"{sri}"}}"#);
        for (method, prefix) in [("nar", "fixed:r:"), ("flat", "fixed:"), ("text", "text:"), ("git", "fixed:git:")] {
            let ca = format!(r#"{{"hash":{hash},"method":"{method}"}}"#);
            let infos = one(&format!(r#""narHash":{hash},"references":["{B}"],"ca":{ca},"deriver":null"#)).unwrap();
            let info = &infos[&StorePath::from_base_name(A).unwrap()];
            assert_eq!(info.nar_hash, format!("sha256:{sri}"));
            assert_eq!(info.ca.as_deref(), Some(format!("{prefix}sha256:{sri}").as_str()));
        }
        let named = format!(r#""narHash":{{"algorithm":"sha256","hash":"sha256-{sri}"}},"references":[]"#);
        let named = one(&named).unwrap();
        assert_eq!(named.values().next().unwrap().nar_hash, format!("sha256-{sri}"));
        for wrong in [
            r#""narHash":3"#,
            r#""narHash":{"hash":"x"}"#,
            r#""narHash":{"algorithm":"sha256"}"#,
            r#""narHash":"x","ca":[]"#,
            r#""narHash":"x","ca":{"method":"nar"}"#,
            r#""narHash":"x","ca":{"method":"new","hash":"sha256:x"}"#,
            r#""narHash":"x","ca":"text:sha256:x\nSig: k:s""#,
            r#""narHash":"x","signatures":["k:s\nURL: nar/x.nar"]"#,
            r#""narHash":"x","signatures":[{"keyName":"k"}]"#,
            r#""narHash":"x","signatures":"k:s""#,
        ] {
            assert!(one(wrong).unwrap_err().is_refusal(), "{wrong}");
        }
    }

    #[test]
    fn an_incomplete_entry_is_refused_by_its_path_unless_the_path_is_invalid() {
        for incomplete in [
            r#""references":[]"#,
            r#""narHash":null,"references":[]"#,
            r#""narHash":"","references":[]"#,
            r#""narHash":"x""#,
            r#""narHash":"x","references":null"#,
            r#""narHash":"x","references":[],"narSize":"1""#,
            r#""valid":true"#,
            "",
        ] {
            for json in [
                format!(r#"[{{"path":"/nix/store/{A}"{}{incomplete}}}]"#, if incomplete.is_empty() { "" } else { "," }),
                format!(r#"{{"/nix/store/{A}":{{{incomplete}}}}}"#),
                format!(r#"{{"version":3,"storeDir":"/nix/store","info":{{"{A}":{{{incomplete}}}}}}}"#),
            ] {
                let error = parse(&json).unwrap_err();
                assert!(error.is_refusal() && error.message().contains(A), "{json}: {error}");
            }
        }
        for invalid in [r#"{"valid":false}"#, "null"] {
            assert!(parse(&format!(r#"{{"/nix/store/{A}":{invalid}}}"#)).unwrap().is_empty(), "{invalid}");
        }
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let entry = |version: &str| format!(r#"{{"narHash":"x","references":[]{version}}}"#);
        for version in ["0", "4", "-1", "2.5", "\"2\"", "null"] {
            for json in [
                format!(r#"{{"version":{version},"storeDir":"/nix/store","info":{{"{A}":{}}}}}"#, entry("")),
                format!(r#"{{"{A}":{}}}"#, entry(&format!(r#","version":{version}"#))),
            ] {
                let error = parse(&json).unwrap_err();
                assert!(error.is_refusal() && error.message().contains("version"), "{json}: {error}");
            }
        }
        for version in 1..=3 {
            let json = format!(r#"{{"{A}":{}}}"#, entry(&format!(r#","version":{version}"#)));
            assert_eq!(parse(&json).unwrap().len(), 1, "{json}");
        }
    }

    #[test]
    fn malformed_documents_are_refused() {
        assert!(parse(r#"{"version":2,"storeDir":"/nix/store/","info":{}}"#).unwrap().is_empty());
        let elsewhere = r#"{"version":2,"storeDir":"/gnu/store","info":{}}"#;
        for json in ["", "x", "3", r#"[{"narHash":"x"}]"#, r#"{"/nix/store/x":{"narHash":"x"}}"#, elsewhere] {
            assert!(parse(json).unwrap_err().is_refusal(), "{json}");
        }
        let wrong = format!(r#"{{"/nix/store/{A}":{{"narHash":"x","references":[1]}}}}"#);
        assert!(parse(&wrong).unwrap_err().message().contains(A));
    }
}
