//! Keys, signatures and trust; the library behind `cache-sign`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`keys`] | secret keys, public keys, signatures |
//! | [`key_source`] | where a secret key is read from |
//! | [`nix_conf`] | which caches nix.conf names and which keys it trusts |
//! | [`trust`] | whether a narinfo is to be trusted |
//! | [`archive_verifier`] | what passes of an archive |
//! | [`spool`] | NARs of an archive that wait for that |

pub mod archive_verifier;
pub mod cli;
pub mod key_source;
pub mod keys;
pub mod nix_conf;
pub mod spool;
pub mod trust;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use archive_verifier::{ArchiveVerifier, Results, Summary};
use cli::{Cli, Command, Sign, Verify};
use keys::{SecretKey, signer};
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::stdio;
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::{self, Member, Object};
use narinfo_gen::narinfo::{self, NarInfo, TextWriter};
use narinfo_gen::stream::{Kind, Sniffed, sniff};
use serde_json::json;
use trust::TrustedKeys;

const TOOL: &str = "cache-sign";
const WANTED: &str = "narinfo text or a cache archive";

/// Runs `cache-sign`.
///
/// # Errors
/// See the exit codes in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    match &cli.command {
        None => sign(&cli.sign),
        Some(Command::Keygen { name, secret_file, public_file }) => keygen(name, secret_file, public_file),
        Some(Command::PublicKey(args)) => public_key(args),
        Some(Command::Verify(args)) => verify(args),
    }
}

/// Both files are made or neither is; Nix writes no line feed after a key, so neither do we.
fn keygen(name: &str, secret_file: &Path, public_file: &Path) -> Result {
    let key = SecretKey::generate(name)?;
    let mut secret = create(secret_file, 0o600)?;
    let mut public = create(public_file, 0o644).inspect_err(|_| drop(std::fs::remove_file(secret_file)))?;
    let written = secret
        .write_all(key.to_file_text().as_bytes())
        .and_then(|()| public.write_all(key.public().to_string().as_bytes()))
        .and_then(|()| secret.sync_all());
    written.map_err(|error| {
        let _ = std::fs::remove_file(secret_file);
        let _ = std::fs::remove_file(public_file);
        Error::failed(format!("writing the key pair {}: {error}", secret_file.display()))
    })
}

fn create(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| Error::failed(format!("creating {}: {error}", path.display())))
}

fn public_key(args: &cli::PublicKey) -> Result {
    let mut keys = key_source::open_keys(&args.keys)?;
    match args.secret_file.as_deref() {
        Some(file) if file == Path::new("-") => keys.push(key_source::from_stdin(args.keys.seed)?),
        Some(file) => keys.push(key_source::from_file(file, args.keys.seed)?),
        None => {}
    }
    let mut out = stdio::stdout(None)?;
    for key in keys {
        writeln!(out, "{}", key.public())?;
    }
    out.finish()
}

fn sign(args: &Sign) -> Result {
    if args.key_files.iter().any(|file| file == Path::new("-")) {
        return Err(Error::failed("-k -: standard input is what is to be signed; use --key-fd"));
    }
    let mut keys: Vec<SecretKey> =
        args.key_files.iter().map(|file| key_source::from_file(file, args.keys.seed)).collect::<Result<_>>()?;
    keys.extend(key_source::open_keys(&args.keys)?);
    if keys.is_empty() {
        return Err(Error::failed("expected -k SECRET-FILE, --key-fd, --key-env, or a command"));
    }
    let keys: Vec<_> = keys.into_iter().map(|key| (key.public(), key)).collect();
    let mut replaced: Vec<(&str, u64)> = args.replace.iter().map(|name| (name.as_str(), 0)).collect();
    let mut each = |mut narinfo: NarInfo| {
        narinfo.signatures.retain(|signature| {
            let by = replaced.iter_mut().find(|(name, _)| *name == signer(signature));
            by.map(|(_, count)| *count += 1).is_none()
        });
        let fingerprint = narinfo.fingerprint();
        for (public, key) in &keys {
            // Another tool's signature by the same key may be other bytes, and serves as well.
            if !narinfo.signatures.iter().any(|signature| public.verifies(&fingerprint, signature)) {
                narinfo.add_signature(key.sign(&fingerprint));
            }
        }
        narinfo
    };
    let store_dir = StoreDir::new(&args.store_dir)?;
    match open(WANTED)? {
        (Kind::Narinfo, input) => {
            let mut text = TextWriter::new(stdio::stdout(None)?);
            let result = narinfo::read_text(input, &store_dir, |narinfo, more| text.write(&each(narinfo), more));
            result.inspect_err(|_| text.mark_truncated())?;
            text.into_inner().finish()?;
        }
        (_, input) => {
            let mut out = archive::Writer::new(stdio::stdout(Some("the cache archive"))?);
            archive::read(input, |mut member| match member.object {
                Object::Narinfo(_) => out.narinfo(&each(parse_narinfo(&mut member, &store_dir)?)),
                _ => out.member(&member.key, member.size, member.body),
            })?;
            out.finish()?.finish()?;
        }
    }
    for (name, _) in replaced.iter().filter(|(_, count)| *count == 0) {
        process::print_message(TOOL, format!("--replace {name}: there was no signature of that name"));
    }
    Ok(())
}

fn verify(args: &Verify) -> Result {
    let trusted = TrustedKeys::from_cli(&args.trust)?;
    let store_dir = StoreDir::new(&args.store_dir)?;
    let mut summary = Summary::default();
    let mut judge = |narinfo: &NarInfo| {
        let verdict = trusted.require(narinfo);
        summary.count(&verdict);
        verdict.is_ok()
    };
    match (open(WANTED)?, args.json) {
        ((Kind::Narinfo, input), true) => {
            let mut out = stdio::stdout(None)?;
            narinfo::read_text(input, &store_dir, |narinfo, _| {
                let holds = judge(&narinfo);
                tell(&mut out, &trusted, &narinfo, holds)
            })?;
            out.finish()?;
        }
        ((Kind::Narinfo, input), false) => {
            let mut text = TextWriter::new(stdio::stdout(None)?);
            // What follows may be refused, so nothing promises that it comes.
            let result = narinfo::read_text(input, &store_dir, |narinfo, _| {
                if judge(&narinfo) { text.write(&narinfo, false) } else { Ok(()) }
            });
            result.inspect_err(|_| text.mark_truncated())?;
            text.into_inner().finish()?;
        }
        ((_, input), json) => {
            let results = if json {
                Results::Report(stdio::stdout(None)?)
            } else {
                Results::Archive(archive::Writer::new(stdio::stdout(Some("the cache archive"))?))
            };
            let (out, found) = ArchiveVerifier::new(&trusted, &store_dir, results).run(input)?;
            out.finish()?;
            summary = found;
        }
    }
    summary.verdict()
}

/// A line that says who signed a path, and whether it passes.
fn tell(out: &mut impl Write, trusted: &TrustedKeys, narinfo: &NarInfo, holds: bool) -> Result {
    let judgement = trusted.judge(narinfo);
    let signers: Vec<&str> = judgement.signers.iter().map(|key| key.name()).collect();
    let signatures = narinfo
        .signatures
        .iter()
        .map(|signature| json!({ "key": signer(signature), "verdict": trusted.verdict(narinfo, signature).word() }));
    let line = json!({
        "path": narinfo.full_path(),
        "trusted": holds,
        "signedBy": signers,
        "threshold": judgement.threshold,
        "contentAddressed": judgement.proves_itself,
        "signatures": signatures.collect::<Vec<_>>(),
    });
    writeln!(out, "{}", escaped(&line.to_string()))?;
    Ok(out.flush()?)
}

/// JSON in which no character controls a terminal: those above ASCII need no escape in JSON, and stand only in strings.
fn escaped(json: &str) -> String {
    let escape = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

/// Standard input, which is narinfo text or a cache archive.
fn open(wanted: &str) -> Result<(Kind, Sniffed)> {
    match sniff(stdio::stdin(wanted)?, wanted)? {
        (kind @ (Kind::Narinfo | Kind::Archive), input) => Ok((kind, input)),
        (other, _) => Err(Error::refused(format!("standard input is {}; expected {wanted}", other.name()))),
    }
}

fn parse_narinfo(member: &mut Member<'_>, store_dir: &StoreDir) -> Result<NarInfo> {
    let narinfo = NarInfo::parse(&member.text(member.text_limit())?, store_dir)?;
    if narinfo.key() != member.key {
        return Err(Error::refused(format!("it describes another path, {}", narinfo.path)));
    }
    Ok(narinfo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_in_json() {
        let line = json!({ "key": "a\u{9b}2J\u{7f}\u{85}\u{1b}ü\"" }).to_string();
        let safe = escaped(&line);
        assert!(!safe.contains(char::is_control), "{safe:?}");
        assert_eq!(safe, "{\"key\":\"a\\u009b2J\\u007f\\u0085\\u001bü\\\"\"}");
        let back: serde_json::Value = serde_json::from_str(&safe).unwrap();
        assert_eq!(back, serde_json::from_str::<serde_json::Value>(&line).unwrap());
    }
}
