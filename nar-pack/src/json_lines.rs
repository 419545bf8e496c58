//! JSON output: one object per line, each with the version of its format. The version changes only if a field is renamed
//! or removed, or changes its meaning.

use std::io::Write;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::stdio;

/// The version of every object.
const VERSION: u32 = 1;

/// Writes an object as one line, and flushes it: a reader may act on each line.
///
/// # Errors
/// The errors of `out`.
pub fn write_object(out: &mut impl Write, object: Value) -> Result {
    writeln!(out, "{}", line(object))?;
    Ok(out.flush()?)
}

/// Writes one object to standard output, which has no other contents.
///
/// # Errors
/// Fails if standard output cannot be written.
pub fn print_object(object: Value) -> Result {
    let mut out = stdio::stdout(None)?;
    write_object(&mut out, object)?;
    out.finish()
}

/// Returns an object as one line, with the version as its first field.
fn line(object: Value) -> String {
    let mut versioned = Map::from_iter([("version".to_owned(), json!(VERSION))]);
    if let Value::Object(fields) = object {
        versioned.extend(fields);
    }
    escape_control_characters(&Value::Object(versioned).to_string())
}

/// Returns the object that stands for an error of the tool.
pub(crate) fn error_line(tool: &str, error: &Error, hint: Option<&str>) -> String {
    line(json!({ "error": {
        "tool": tool, "kind": error.kind_name(), "message": error.to_string(),
        "hint": hint, "exitStatus": error.exit_status(),
    } }))
}

/// Escapes the control characters that JSON allows unescaped (U+007F to U+009F), which a terminal would interpret. In
/// JSON they occur only inside strings.
fn escape_control_characters(json: &str) -> String {
    let escape = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        let object = json!({ "key": "a\u{9b}2J\u{7f}\u{85}\u{1b}ü\"" });
        let escaped = line(object.clone());
        assert!(!escaped.contains(char::is_control), "{escaped:?}");
        assert_eq!(escaped, "{\"version\":1,\"key\":\"a\\u009b2J\\u007f\\u0085\\u001bü\\\"\"}");
        let parsed: Value = serde_json::from_str(&escaped).unwrap();
        assert_eq!(parsed["key"], object["key"]);
    }

    #[test]
    fn an_object_has_one_version() {
        assert_eq!(line(json!({ "version": 1, "paths": 2 })), "{\"version\":1,\"paths\":2}");
    }

    #[test]
    fn an_error_has_its_hint_and_exit_status() {
        assert_eq!(
            error_line("s3-pull", &Error::refused("x.narinfo: bad hash"), Some("fetch it again")),
            "{\"version\":1,\"error\":{\"tool\":\"s3-pull\",\"kind\":\"refused\",\"message\":\"x.narinfo: bad hash\",\
             \"hint\":\"fetch it again\",\"exitStatus\":1}}"
        );
    }
}
