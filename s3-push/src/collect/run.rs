//! `s3-push collect`: finds the dead paths, and dooms or deletes them and what only they needed.

use std::collections::HashSet;
use std::sync::Arc;

use nar_pack::error::Result;
use nar_pack::store_path::StoreDir;
use tokio::runtime::Runtime;

use super::candidates::Candidates;
use super::cli::CollectArgs;
use super::delete::{DeleteOptions, delete_paths};
use super::outcome::{Outcome, OutcomeWriter};
use super::unneeded::{UnneededOptions, delete_unneeded};
use crate::TOOL;
use crate::remote::cli::only_url;
use crate::remote::known_texts::KnownTexts;
use crate::remote::liveness::{RootOptions, find_dead};
use crate::remote::s3::Access;

/// Collects garbage, and prints the deleted store paths and keys.
pub fn run(runtime: &Runtime, args: &CollectArgs) -> Result {
    let store_dir = StoreDir::new(&args.bucket.store_dir)?;
    let url = only_url(&args.targets)?;
    let mut roots = RootOptions::from_args(&args.roots, &store_dir)?;
    // Each of the three steps needs all narinfos.
    roots.known = Some(Arc::new(KnownTexts::remembering(roots.known.as_deref())?));
    let (is_quiet, takeover_pause) = (args.bucket.quiet, args.takeover.takeover_pause);
    let mut unneeded = UnneededOptions {
        store_dir: store_dir.clone(),
        grace: args.grace,
        max_percent: args.max_delete,
        takeover_pause,
        is_quiet,
        known: roots.known.clone(),
        deleted: HashSet::new(),
    };
    unneeded.require_valid()?;
    let options = DeleteOptions {
        store_dir,
        now: false,
        max_percent: args.max_delete,
        retention: roots.retention,
        roots: roots.paths.clone(),
        takeover_pause,
        is_quiet,
        known: roots.known.clone(),
    };
    let mut writer = OutcomeWriter::new(args.json, args.dry_run)?;
    runtime.block_on(async {
        let bucket = args.bucket.connect(&url, Access::Signed, TOOL).await?.with_dry_run(args.dry_run);
        let dead = find_dead(&bucket, &options.store_dir, &roots).await?;
        let (mut paths, mut objects) = (Outcome::default(), Outcome::default());
        let result = delete_paths(&bucket, Candidates::of_dead(dead, &options.store_dir)?, &options, &mut paths).await;
        writer.add_paths(&paths, result)?;
        if bucket.is_dry_run() {
            let hash_of = |path: &String| Ok(options.store_dir.parse(path)?.hash_part());
            unneeded.deleted = paths.deleted.iter().map(hash_of).collect::<Result<_>>()?;
        }
        let result = delete_unneeded(&bucket, &unneeded, &mut objects).await;
        writer.add_objects(&objects, result)
    })?;
    writer.finish()
}
