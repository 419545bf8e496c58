//! The report of `cache-sign verify --json`: one JSON object per path and line.

use std::io::Write;

use nar_pack::error::Result;
use narinfo_gen::narinfo::NarInfo;
use serde_json::json;

use crate::keys::key_name;
use crate::trust::TrustedKeys;

/// Writes the line of one path and flushes it. `is_trusted` is the result for the path, which also depends on its NAR.
///
/// # Errors
/// The errors of `out`.
pub fn write_report_line(out: &mut impl Write, trusted: &TrustedKeys, narinfo: &NarInfo, is_trusted: bool) -> Result {
    let check = trusted.check(narinfo);
    let signers: Vec<&str> = check.signers.iter().map(|key| key.name()).collect();
    let signatures = narinfo.signatures.iter().map(|signature| {
        json!({ "key": key_name(signature), "verdict": trusted.signature_status(narinfo, signature).name() })
    });
    let line = json!({
        "path": narinfo.full_path(),
        "trusted": is_trusted,
        "signedBy": signers,
        "threshold": check.threshold,
        "contentAddressed": check.is_content_addressed,
        "signatures": signatures.collect::<Vec<_>>(),
    });
    writeln!(out, "{}", escape_control_characters(&line.to_string()))?;
    Ok(out.flush()?)
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
    fn control_characters_are_escaped_in_json() {
        let line = json!({ "key": "a\u{9b}2J\u{7f}\u{85}\u{1b}ü\"" }).to_string();
        let escaped = escape_control_characters(&line);
        assert!(!escaped.contains(char::is_control), "{escaped:?}");
        assert_eq!(escaped, "{\"key\":\"a\\u009b2J\\u007f\\u0085\\u001bü\\\"\"}");
        let parsed: serde_json::Value = serde_json::from_str(&escaped).unwrap();
        assert_eq!(parsed, serde_json::from_str::<serde_json::Value>(&line).unwrap());
    }
}
