//! A pin as the source of store paths, and the narinfos of its closure, with which a walk need not look up each level after
//! the one before. These narinfos are verified like any other, but they may be old: a path whose NAR cannot be fetched with
//! one of them is looked up ([`Alternatives`](crate::sources::Alternatives)).

use std::collections::HashMap;

use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use nar_pack::store_path::{HashPart, StoreDir, StorePath};
use narinfo_gen::narinfo::{NarInfo, read_text};
use s3_push::remote::Remote;
use s3_push::remote::pins::{MAX_CLOSURE_SIZE, MAX_SIZE, PinName, parse_pin};

use crate::TOOL;

/// The paths of a pin.
pub struct Pin {
    /// The paths.
    pub paths: Vec<StorePath>,
    /// The narinfos of the closure that are stored beside the pin. They are not verified.
    pub narinfos: HashMap<HashPart, NarInfo>,
}

/// Reads a pin, and the narinfos of its closure if `is_recursive`. Returns none if the cache has no such pin.
///
/// # Errors
/// Fails if the pin cannot be read; refuses one that is not a path list. The narinfos are left out if they cannot be read.
pub async fn read_pin(
    remote: &Remote,
    name: &PinName,
    store_dir: &StoreDir,
    is_recursive: bool,
) -> Result<Option<Pin>> {
    let key = name.key();
    let narinfos = async { if is_recursive { read_narinfos(remote, name, store_dir).await } else { HashMap::new() } };
    let (text, narinfos) = tokio::join!(remote.text(&key, MAX_SIZE), narinfos);
    let Some(text) = text? else { return Ok(None) };
    let paths = parse_pin(&text, store_dir).context(|| remote.display_url(&key))?;
    Ok(Some(Pin { paths, narinfos }))
}

async fn read_narinfos(remote: &Remote, name: &PinName, store_dir: &StoreDir) -> HashMap<HashPart, NarInfo> {
    let key = name.closure_key();
    let mut narinfos = HashMap::new();
    let read = async {
        let Some(text) = remote.text(&key, MAX_CLOSURE_SIZE).await? else { return Ok(()) };
        read_text(text.as_bytes(), store_dir, |narinfo, _| {
            narinfos.insert(narinfo.path.hash_part(), narinfo);
            Ok(())
        })
        .context(|| remote.display_url(&key))
    };
    if let Err(error) = Box::pin(read).await {
        let error: Error = error;
        process::print_message(TOOL, format!("note: {error}; each path is looked up instead"));
    }
    narinfos
}
