//! Verifies the narinfos of a stream: passes on trusted data, or prints a report, and reports everything else on
//! standard error.

use std::io::BufRead;

use nar_pack::error::Result;
use nar_pack::stdio;
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive;
use narinfo_gen::narinfo::{self, TextWriter};

use crate::archive_verifier::{ArchiveVerifier, Summary, VerifyOutput};
use crate::input::Input;
use crate::report::write_report_line;
use crate::trust::TrustedKeys;

/// Options of [`verify`].
#[derive(Debug)]
pub struct VerifyOptions {
    /// The trusted keys, and how many of them must have signed.
    pub trusted: TrustedKeys,
    /// Whether a report is printed instead of the trusted data.
    pub json: bool,
    /// The store directory of the narinfos.
    pub store_dir: StoreDir,
}

/// Verifies narinfo text or a cache archive on standard input.
///
/// # Errors
/// Refuses a malformed or truncated stream, and a stream of which something is not trusted.
pub fn verify(options: &VerifyOptions) -> Result {
    let summary = match Input::open()? {
        Input::Text(input) if options.json => report_on_text(input, options)?,
        Input::Text(input) => filter_text(input, options)?,
        Input::Archive(input) => verify_archive(input, options)?,
    };
    summary.into_result()
}

fn report_on_text(input: impl BufRead, options: &VerifyOptions) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut out = stdio::stdout(None)?;
    narinfo::read_text(input, &options.store_dir, |narinfo, _| {
        let is_trusted = summary.count_path(&options.trusted.require(&narinfo));
        write_report_line(&mut out, &options.trusted, &narinfo, is_trusted)
    })?;
    out.finish()?;
    Ok(summary)
}

fn filter_text(input: impl BufRead, options: &VerifyOptions) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut text = TextWriter::new(stdio::stdout(None)?);
    let result = narinfo::read_text(input, &options.store_dir, |narinfo, _| {
        // The next narinfo may be dropped, so the text must not announce that more follows.
        let is_trusted = summary.count_path(&options.trusted.require(&narinfo));
        if is_trusted { text.write(&narinfo, false) } else { Ok(()) }
    });
    result.inspect_err(|_| text.mark_truncated())?;
    text.into_inner().finish()?;
    Ok(summary)
}

fn verify_archive(input: impl BufRead, options: &VerifyOptions) -> Result<Summary> {
    let output = if options.json {
        VerifyOutput::Report(stdio::stdout(None)?)
    } else {
        VerifyOutput::Archive(archive::Writer::new(stdio::stdout(Some("the cache archive"))?))
    };
    let (out, summary) = ArchiveVerifier::new(&options.trusted, &options.store_dir, output).run(input)?;
    if let Some(out) = out {
        out.finish()?;
    }
    Ok(summary)
}
