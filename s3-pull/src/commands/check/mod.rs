//! `s3-pull check`: finds the paths of a bucket that clients cannot use, and objects that nothing needs. Reads only.
//! Everything fails closed: whatever cannot be listed or read is an error, and never counts as broken.
//!
//! | module | responsibility |
//! | --- | --- |
//! | `listing` | the objects of the bucket by kind |
//! | `narinfos` | narinfos, their signatures and references |
//! | `nars` | the sizes of NARs, and their contents |
//! | `pins` | the pins, and the paths that they name |
//! | `share` | which NARs are read on a day |
//! | `findings` | the report |

mod findings;
mod listing;
mod narinfos;
mod nars;
mod pins;
pub mod share;

use std::sync::Arc;

use cache_sign::trust::TrustedKeys;
use nar_pack::error::Result;
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::NAR_PREFIX;
use s3_push::remote::RemoteOptions;
use s3_push::remote::cli::only_url;
use s3_push::remote::known_texts::KnownTexts;
use s3_push::remote::location::shell_argument;
use s3_push::remote::pins::PREFIX as PIN_PREFIX;
use s3_push::remote::retry::RequestLimits;
use s3_push::remote::s3::{Access, Bucket};
use tokio::runtime::Runtime;

use super::cli::CheckArgs;
use super::connect;
use crate::TOOL;
use crate::sources::Sources;
use findings::Findings;
use share::ReadShare;

/// What is checked.
pub struct CheckOptions {
    /// The store directory of the paths.
    store_dir: StoreDir,
    /// Whether only the listing is checked.
    is_list_only: bool,
    /// The keys that must have signed a path; none if signatures are not verified.
    trusted: Option<TrustedKeys>,
    /// Caches that have the references that this one lacks.
    upstreams: Vec<String>,
    /// Whether references need not be there.
    allow_missing_references: bool,
    /// Which NARs are read, if any.
    read: Option<ReadShare>,
    /// Narinfos of an earlier run.
    known: Option<KnownTexts>,
    limits: RequestLimits,
}

impl CheckOptions {
    fn from_args(args: &CheckArgs) -> Result<Self> {
        let verifies = !args.no_verify_signatures && !args.list_only;
        Ok(Self {
            store_dir: StoreDir::new(&args.bucket.store_dir)?,
            is_list_only: args.list_only,
            trusted: verifies.then(|| TrustedKeys::from_cli(&args.trust)).transpose()?,
            upstreams: args.upstream.clone(),
            allow_missing_references: args.allow_missing_references,
            read: if args.nars { Some(ReadShare::ALL) } else { args.read_nars },
            known: args.have.as_deref().map(KnownTexts::open).transpose()?,
            limits: args.bucket.limits(),
        })
    }
}

pub fn run(runtime: &Runtime, args: &CheckArgs) -> Result {
    let url = only_url(&args.targets)?;
    let options = CheckOptions::from_args(args)?;
    args.decompression_args.apply();
    let mut findings = Findings::default();
    let result = runtime.block_on(async {
        let bucket = connect(&url, &args.bucket).await?;
        check(Arc::new(bucket), &options, &mut findings).await
    });
    // What was found before an error goes to standard error, since it is incomplete.
    findings.print(args.bucket.quiet);
    result?;
    findings.print_summary(args.bucket.quiet);
    findings.write(args.json, &shell_argument(&args.targets, &url))
}

async fn check(bucket: Arc<Bucket>, options: &CheckOptions, findings: &mut Findings) -> Result {
    let top = listing::list_top_level(&bucket, options.is_list_only, findings).await?;
    listing::find_unneeded_listings(&bucket, &top, findings);
    for prefix in top.prefixes.iter().filter(|prefix| *prefix != NAR_PREFIX) {
        listing::list_others(&bucket, prefix, findings).await?;
    }
    listing::find_incomplete_uploads(&bucket, findings).await;
    if options.is_list_only {
        return listing::count_nars(&bucket, findings).await;
    }
    listing::check_cache_info(&bucket, &options.store_dir, findings).await?;
    let upstreams = open_upstreams(options).await?;
    let narinfos = &top.narinfos;
    let (needs, missing) = narinfos::check_narinfos(&bucket, options, narinfos, findings).await?;
    narinfos::check_references(&bucket, options, upstreams.as_ref(), missing, findings).await?;
    if top.prefixes.iter().any(|prefix| prefix == PIN_PREFIX) {
        pins::check_pins(&bucket, options, narinfos, findings).await?;
    }
    // Listed after the narinfos: a NAR is written before its narinfo.
    let to_read = nars::check_sizes(&bucket, options, narinfos, needs, findings).await?;
    if to_read.is_empty() {
        return Ok(());
    }
    nars::read_nars(bucket, options, narinfos, to_read, findings).await
}

async fn open_upstreams(options: &CheckOptions) -> Result<Option<Sources>> {
    if options.upstreams.is_empty() {
        return Ok(None);
    }
    let access = Access::SignedIfPossible { has_opt_out: false };
    let remote = RemoteOptions { access, limits: options.limits, netrc: None, tool: TOOL };
    let upstreams = Sources::open(&options.upstreams, remote, None, options.store_dir.clone()).await?;
    upstreams.require_all()?;
    Ok(Some(upstreams))
}
