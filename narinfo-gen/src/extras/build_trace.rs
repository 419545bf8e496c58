//! The build trace: which path an output of a content-addressed derivation has.
//!
//! | key | written by |
//! | --- | --- |
//! | `realisations/<derivation output>.doi` | `nix copy` before Nix 2.35 |
//! | `build-trace-v2/<derivation>/<output>.doi` | `nix copy` since Nix 2.35 |

use nar_pack::error::{Error, Result};
use nar_pack::path_info::parse_path_or_base_name;
use nar_pack::store_path::{StoreDir, StorePath};
use serde_json::{Value, json};

use super::ExtraObject;
use crate::archive::{BUILD_TRACE_PREFIX, REALISATION_PREFIX};

/// Returns the build trace entries of `path` in the output of Nix (`PathInfoSource::realisations`), each with the key that
/// the same version of Nix uses.
///
/// # Errors
/// Refuses output that is not in one of the known formats.
pub fn build_trace_entries(json: &str, path: &StorePath, store_dir: &StoreDir) -> Result<Vec<ExtraObject>> {
    let unexpected = || Error::refused("unexpected output of Nix: not a list of realisations");
    let document: Value = serde_json::from_str(json).map_err(|_| unexpected())?;
    let mut objects = Vec::new();
    for entry in document.as_array().ok_or_else(unexpected)? {
        // Since Nix 2.35 an entry has a key and a value, and only the value is written to the cache.
        let value = entry.get("value").unwrap_or(entry);
        let out_path = value["outPath"].as_str().and_then(|out| parse_path_or_base_name(out, store_dir).ok());
        if out_path.as_ref() != Some(path) {
            continue;
        }
        let key = match (&entry["id"], entry.get("key")) {
            (Value::String(id), None) => realisation_key(id),
            (_, Some(key)) => build_trace_key(key, store_dir),
            // A path that is not the output of a content-addressed derivation.
            _ => continue,
        };
        let key = key.ok_or_else(unexpected)?;
        if objects.iter().all(|object: &ExtraObject| object.key != key) {
            objects.push(ExtraObject::from_bytes(key, value.to_string().into_bytes()));
        }
    }
    Ok(objects)
}

/// A build trace entry of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildTraceEntry {
    /// The path of the output.
    pub out_path: StorePath,
    /// The text that the signatures cover: the entry as JSON, without its signatures (Nix's
    /// `UnkeyedRealisation::fingerprint`).
    pub fingerprint: String,
    /// The signatures, as `NAME:BASE64`.
    pub signatures: Vec<String>,
}

impl BuildTraceEntry {
    /// Parses the object `key` of a cache.
    ///
    /// # Errors
    /// Refuses a malformed entry, and a realisation that belongs to another key.
    pub fn parse(key: &str, json: &[u8], store_dir: &StoreDir) -> Result<Self> {
        let malformed = || Error::refused("not a valid build trace entry");
        let mut value: Value = serde_json::from_slice(json).map_err(|_| malformed())?;
        let signatures = value.as_object_mut().ok_or_else(malformed)?.remove("signatures").unwrap_or_default();
        let out_path = value["outPath"].as_str().ok_or_else(malformed)?;
        let out_path = parse_path_or_base_name(out_path, store_dir)?;
        let mut signed = if key.starts_with(REALISATION_PREFIX) {
            if value["id"].as_str().and_then(realisation_key).as_deref() != Some(key) {
                return Err(Error::refused("it is the realisation of another output"));
            }
            value
        } else {
            let name = key.strip_prefix(BUILD_TRACE_PREFIX).and_then(|name| name.strip_suffix(".doi"));
            let (derivation, output) = name.and_then(|name| name.split_once('/')).ok_or_else(malformed)?;
            let entry = json!({ "drvPath": derivation, "outputName": output });
            if build_trace_key(&entry, store_dir).as_deref() != Some(key) {
                return Err(malformed());
            }
            json!({ "key": entry, "value": value })
        };
        let signatures = match signatures {
            Value::Null => Vec::new(),
            Value::Array(signatures) => {
                signatures.iter().map(signature).collect::<Option<_>>().ok_or_else(malformed)?
            }
            _ => return Err(malformed()),
        };
        signed.sort_all_objects();
        Ok(Self { out_path, fingerprint: signed.to_string(), signatures })
    }
}

/// Returns a signature as `NAME:BASE64`. Since Nix 2.35 it is an object.
fn signature(value: &Value) -> Option<String> {
    match value {
        Value::String(signature) => Some(signature.clone()),
        _ => Some(format!("{}:{}", value["keyName"].as_str()?, value["sig"].as_str()?)),
    }
}

/// Returns the key of a realisation with the ID `sha256:<digits>!<output>`.
fn realisation_key(id: &str) -> Option<String> {
    let (hash, output) = id.split_once('!')?;
    (is_key_component(hash) && is_key_component(output)).then(|| format!("{REALISATION_PREFIX}{id}.doi"))
}

/// Returns the key of the build trace entry of an output of a derivation.
fn build_trace_key(key: &Value, store_dir: &StoreDir) -> Option<String> {
    let (derivation, output) = (key["drvPath"].as_str()?, key["outputName"].as_str()?);
    let derivation = parse_path_or_base_name(derivation, store_dir).ok()?;
    (derivation.is_derivation() && is_key_component(output))
        .then(|| format!("{BUILD_TRACE_PREFIX}{derivation}/{output}.doi"))
}

/// Returns whether a text may be part of a key.
fn is_key_component(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":+-._?=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn path() -> StorePath {
        StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap()
    }

    #[test]
    fn realisations_of_other_paths_are_skipped_and_invalid_ids_refused() {
        let dir = StoreDir::new("/nix/store").unwrap();
        let entry = |id: &str, out: &str| {
            format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{out}","signatures":[]}}"#)
        };
        let own = path().base_name().to_owned();
        let good = entry("sha256:00ff!out", &own);
        let json = format!(r#"[{good},{},{{"opaquePath":"/nix/store/{own}"}}]"#, entry("sha256:1!dev", "other"));
        let found = build_trace_entries(&json, &path(), &dir).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].key.as_str(), found[0].body.size()),
            ("realisations/sha256:00ff!out.doi", good.len() as u64)
        );
        for id in ["../x!out", "sha256:1!a/b", "!out", "x"] {
            assert!(build_trace_entries(&format!("[{}]", entry(id, &own)), &path(), &dir).is_err(), "{id}");
        }
        assert!(build_trace_entries("{}", &path(), &dir).is_err());
    }

    #[test]
    fn an_entry_of_a_cache_is_parsed_and_must_belong_to_its_key() {
        let dir = StoreDir::new("/nix/store").unwrap();
        let own = path().base_name().to_owned();
        let json = format!(
            r#"{{"signatures":["k:s"],"outPath":"{own}","id":"sha256:00ff!out","dependentRealisations":{{}}}}"#
        );
        let entry = BuildTraceEntry::parse("realisations/sha256:00ff!out.doi", json.as_bytes(), &dir).unwrap();
        assert_eq!((entry.out_path, entry.signatures), (path(), vec!["k:s".to_owned()]));
        let expected = format!(r#"{{"dependentRealisations":{{}},"id":"sha256:00ff!out","outPath":"{own}"}}"#);
        assert_eq!(entry.fingerprint, expected);
        assert!(BuildTraceEntry::parse("realisations/sha256:00ff!dev.doi", json.as_bytes(), &dir).is_err());
        let derivation = format!("{}-x.drv", "1".repeat(32));
        let json = format!(r#"{{"outPath":"{own}","signatures":[{{"keyName":"k","sig":"s"}}]}}"#);
        let key = format!("build-trace-v2/{derivation}/out.doi");
        let entry = BuildTraceEntry::parse(&key, json.as_bytes(), &dir).unwrap();
        assert_eq!(entry.signatures, ["k:s"]);
        let expected =
            format!(r#"{{"key":{{"drvPath":"{derivation}","outputName":"out"}},"value":{{"outPath":"{own}"}}}}"#);
        assert_eq!(entry.fingerprint, expected);
        for (key, json) in [
            (key.as_str(), "{}"),
            (&key, "[]"),
            (&key, r#"{"outPath":"../x"}"#),
            (&key.replace(".drv", ""), &json),
            (&key.replace("/out", "/../out"), &json),
            (&key, &json.replace("[{", "[3,{")),
        ] {
            assert!(BuildTraceEntry::parse(key, json.as_bytes(), &dir).unwrap_err().is_refusal(), "{key} {json}");
        }
    }

    #[test]
    fn build_trace_entries_have_the_key_of_their_derivation() {
        let dir = StoreDir::new("/nix/store").unwrap();
        let derivation = format!("{}-x.drv", "1".repeat(32));
        let value = format!(r#"{{"outPath":"{}","signatures":[{{"keyName":"k","sig":"s"}}]}}"#, path().base_name());
        let entry = |derivation: &str, output: &str| {
            format!(r#"[{{"key":{{"drvPath":"{derivation}","outputName":"{output}"}},"value":{value}}}]"#)
        };
        for named in [derivation.clone(), format!("/nix/store/{derivation}")] {
            let mut found = build_trace_entries(&entry(&named, "out"), &path(), &dir).unwrap();
            assert_eq!(found[0].key, format!("build-trace-v2/{derivation}/out.doi"));
            let mut text = String::new();
            found[0].body.read_to_string(&mut text).unwrap();
            assert_eq!((found.len(), text.as_str()), (1, value.as_str()));
        }
        let twice = format!("[{0},{0}]", entry(&derivation, "out").trim_matches(['[', ']']));
        assert_eq!(build_trace_entries(&twice, &path(), &dir).unwrap().len(), 1);
        let [whole, output] = [derivation.as_str(), path().base_name()].map(str::to_owned);
        for (derivation, output) in [("x", "out"), (&output, "out"), (&whole, "../x"), (&whole, "")] {
            assert!(build_trace_entries(&entry(derivation, output), &path(), &dir).is_err(), "{derivation} {output}");
        }
        assert!(
            build_trace_entries(&entry(&derivation, "out").replace(path().base_name(), "y"), &path(), &dir)
                .unwrap()
                .is_empty()
        );
    }
}
