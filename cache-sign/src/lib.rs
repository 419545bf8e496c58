//! Keys, signatures and trust; the library behind `cache-sign`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`keys`] | secret keys, public keys, signatures |
//! | [`nix_conf`] | which keys nix.conf trusts |
//! | [`trust`] | whether a narinfo is to be trusted |

pub mod cli;
pub mod keys;
pub mod nix_conf;
pub mod trust;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cli::{Cli, Command, Sign, Verify};
use keys::SecretKey;
use nar_pack::stage::{self, Doing, Failure, Outcome, read_text};
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::{self, Object};
use narinfo_gen::narinfo::{self, NarInfo, TextWriter};
use narinfo_gen::stream::{Kind, sniff};
use trust::TrustedKeys;
use zeroize::Zeroizing;

const TOOL: &str = "cache-sign";
const WANTED: &str = "narinfo text or a cache archive";
/// Longest key file that is read, in bytes.
const MAX_KEY_FILE: u64 = 4096;

/// Runs `cache-sign`.
///
/// # Errors
/// See the exit codes in [`stage`].
pub fn run(cli: &Cli) -> Outcome {
    match &cli.command {
        None => sign(&cli.sign),
        Some(Command::Keygen { name, secret_file, public_file }) => keygen(name, secret_file, public_file),
        Some(Command::PublicKey { secret_file }) => {
            let key = read_key_file(secret_file)?;
            let mut out = stage::stdout(None)?;
            writeln!(out, "{}", key.public())?;
            out.finish()
        }
        Some(Command::Verify(args)) => verify(args),
    }
}

/// Both files are made or neither is; Nix writes no line feed after a key, so neither do we.
fn keygen(name: &str, secret_file: &Path, public_file: &Path) -> Outcome {
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
        Failure::failed(format!("writing the key pair {}: {error}", secret_file.display()))
    })
}

fn create(path: &Path, mode: u32) -> Outcome<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| Failure::failed(format!("creating {}: {error}", path.display())))
}

fn read_key_file(path: &Path) -> Outcome<SecretKey> {
    let at = || format!("key file {}", path.display());
    let text = if path.as_os_str() == "-" {
        read_text(&mut stage::stdin("a secret key")?, MAX_KEY_FILE, "the secret key")?
    } else {
        let mut file = File::open(path).map_err(Failure::from).doing(at)?;
        read_text(&mut file, MAX_KEY_FILE, "the secret key").doing(at)?
    };
    SecretKey::parse(&Zeroizing::new(text)).doing(at)
}

fn sign(args: &Sign) -> Outcome {
    if args.key_files.is_empty() {
        return Err(Failure::failed("expected -k SECRET-FILE, or a command (try --help)"));
    }
    let keys: Vec<SecretKey> = args.key_files.iter().map(|file| read_key_file(file)).collect::<Outcome<_>>()?;
    filter(&args.store_dir, Keeps::All, |mut narinfo| {
        let fingerprint = narinfo.fingerprint();
        for key in &keys {
            narinfo.add_signature(key.sign(&fingerprint));
        }
        Some(narinfo)
    })
}

fn verify(args: &Verify) -> Outcome {
    let trusted = TrustedKeys::from_cli(&args.trust)?;
    let (mut passed, mut refused) = (0_u64, 0_u64);
    filter(&args.store_dir, Keeps::Some, |narinfo| match trusted.require(&narinfo) {
        Ok(()) => {
            passed += 1;
            Some(narinfo)
        }
        Err(failure) => {
            stage::say(TOOL, failure);
            refused += 1;
            None
        }
    })?;
    match refused {
        0 => Ok(()),
        _ => Err(Failure::refused(format!("{refused} of {} paths are not trusted", passed + refused))),
    }
}

/// Reads narinfo text or a cache archive, and writes the same with each narinfo as `each` gives it back. Of an archive
/// only narinfos are looked at; everything else passes unchanged.
fn filter(store_dir: &str, keeps: Keeps, mut each: impl FnMut(NarInfo) -> Option<NarInfo>) -> Outcome {
    let store_dir = StoreDir::new(store_dir)?;
    let (kind, input) = sniff(stage::stdin(WANTED)?, WANTED)?;
    match kind {
        Kind::Narinfo => filter_text(input, &store_dir, keeps, each),
        Kind::Archive => filter_archive(input, &store_dir, &mut each),
        other => Err(Failure::refused(format!("standard input is {}; expected {WANTED}", other.name()))),
    }
}

/// Whether a filter passes on every narinfo: then it is certain that another follows when one came in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    All,
    Some,
}

fn filter_text(
    input: impl BufRead,
    store_dir: &StoreDir,
    keeps: Keeps,
    mut each: impl FnMut(NarInfo) -> Option<NarInfo>,
) -> Outcome {
    let mut text = TextWriter::new(stage::stdout(None)?);
    let result = narinfo::read_text(input, store_dir, |narinfo, more| match each(narinfo) {
        Some(narinfo) => text.write(&narinfo, more && keeps == Keeps::All),
        None => Ok(()),
    });
    result.inspect_err(|_| text.cut_off())?;
    text.into_inner().finish()
}

fn filter_archive(
    input: impl BufRead,
    store_dir: &StoreDir,
    each: &mut impl FnMut(NarInfo) -> Option<NarInfo>,
) -> Outcome {
    let mut out = archive::Writer::new(stage::stdout(Some("the cache archive"))?);
    archive::read(input, |mut member| {
        if !matches!(member.object, Object::Narinfo(_)) {
            return out.member(&member.key, member.size, member.body);
        }
        let narinfo = NarInfo::parse(&member.text(member.text_limit())?, store_dir)?;
        if narinfo.key() != member.key {
            return Err(Failure::refused(format!("it describes another path, {}", narinfo.path)));
        }
        match each(narinfo) {
            Some(narinfo) => {
                out.text(&member.key, &narinfo.to_string())?;
                out.flush()
            }
            None => Ok(()),
        }
    })?;
    out.finish()?.finish()
}
