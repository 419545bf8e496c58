//! `s3-pull dead`: the narinfos of the paths that nothing keeps.

use indicatif::HumanCount;
use nar_pack::error::Result;
use nar_pack::json_lines::write_object;
use nar_pack::process;
use nar_pack::stdio;
use nar_pack::store_path::StoreDir;
use narinfo_gen::narinfo::NarInfo;
use s3_push::remote::cli::only_url;
use s3_push::remote::liveness::{RootOptions, find_dead};
use s3_push::remote::progress::{count_of, is_or_are};
use serde_json::json;
use tokio::runtime::Runtime;

use super::cli::DeadArgs;
use super::connect;
use crate::TOOL;

pub fn run(runtime: &Runtime, args: &DeadArgs) -> Result {
    let store_dir = StoreDir::new(&args.bucket.store_dir)?;
    let url = only_url(&args.targets)?;
    let options = RootOptions::from_args(&args.roots, &store_dir)?;
    let dead = runtime.block_on(async {
        let bucket = connect(&url, &args.bucket).await?;
        find_dead(&bucket, &store_dir, &options).await
    })?;
    let (count, total) = (dead.count(), dead.total);
    let mut out = stdio::stdout(None)?;
    if args.json {
        dead.for_each(|text| write_object(&mut out, NarInfo::parse(text, &store_dir)?.to_json()))?;
        write_object(&mut out, json!({ "summary": { "paths": total, "dead": count } }))?;
    } else {
        dead.write(&mut out)?;
    }
    out.finish()?;
    if !args.bucket.quiet {
        let verb = is_or_are(count);
        process::print_message(
            TOOL,
            format!("{} of {} {verb} dead", HumanCount(count as u64), count_of(total, "path")),
        );
    }
    Ok(())
}
