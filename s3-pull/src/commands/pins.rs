//! `s3-pull pins`: the names of the pins of a bucket, or the paths of one.

use std::io::Write as _;

use nar_pack::error::{Error, Result};
use nar_pack::json_lines::write_object;
use nar_pack::stdio;
use nar_pack::store_path::StoreDir;
use s3_push::remote::cli::{split_url, unexpected_argument};
use s3_push::remote::pins::{PinName, list_pins, read_pin};
use serde_json::json;
use tokio::runtime::Runtime;

use super::cli::PinsArgs;
use super::connect;

pub fn run(runtime: &Runtime, args: &PinsArgs) -> Result {
    let store_dir = StoreDir::new(&args.bucket.store_dir)?;
    let (url, rest) = split_url(&args.targets)?;
    let name = match rest {
        [] => None,
        [name] => Some(PinName::parse(name)?),
        [_, argument, ..] => return Err(unexpected_argument(argument)),
    };
    let field = if name.is_some() { "path" } else { "name" };
    let lines: Vec<String> = runtime.block_on(async {
        let bucket = connect(&url, &args.bucket).await?;
        let Some(name) = name else {
            let pins = list_pins(&bucket).await?;
            return Ok::<_, Error>(pins.into_iter().map(|pin| pin.name.as_str().to_owned()).collect());
        };
        let paths = read_pin(&bucket, &name, &store_dir).await?;
        let missing = || Error::refused(format!("{}: there is no such pin", bucket.display_url(&name.key())));
        Ok(paths.ok_or_else(missing)?.iter().map(|path| store_dir.join(path)).collect())
    })?;
    let mut out = stdio::stdout(None)?;
    for line in lines {
        if args.json {
            write_object(&mut out, json!({ field: line }))?;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    out.finish()
}
