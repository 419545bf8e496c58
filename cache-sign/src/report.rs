//! The report of `cache-sign verify --json`: one JSON object per path and line.

use std::io::Write;

use nar_pack::error::Result;
use nar_pack::json_lines::write_object;
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
    write_object(out, line)
}
