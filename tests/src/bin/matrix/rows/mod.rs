//! The rows: each is a question to a server, asked with our tools, with single requests, or with Nix.

mod access;
mod conditions;
mod debian_testing;
mod https;
mod maintenance;
mod nix;
mod objects;
mod pull;
mod push;
mod signatures;

use crate::outcome::Outcome;
use crate::trial::Trial;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Client {
    /// Our tools, and single requests.
    Tools,
    /// The installed Nix, beside our tools.
    Nix,
    /// The Nix of Debian's testing release, beside our tools. It is installed; that needs root and debootstrap.
    NixTesting,
}

/// A row of the table.
pub struct Row {
    /// Its name in JSON and on the command line.
    pub id: &'static str,
    /// Its title in the table.
    pub title: &'static str,
    /// Who asks.
    pub client: Client,
    /// Whether it takes at most a second or two.
    pub is_quick: bool,
    /// Asks; an error is a failure.
    pub run: fn(&Trial<'_>) -> Result<Outcome, String>,
}

/// Declares a row that our tools ask.
const fn row(id: &'static str, title: &'static str, run: fn(&Trial<'_>) -> Result<Outcome, String>) -> Row {
    Row { id, title, client: Client::Tools, is_quick: true, run }
}

/// Declares a row that takes longer.
const fn slow(id: &'static str, title: &'static str, run: fn(&Trial<'_>) -> Result<Outcome, String>) -> Row {
    Row { is_quick: false, ..row(id, title, run) }
}

/// Declares a row that Nix asks.
const fn nix(id: &'static str, title: &'static str, run: fn(&Trial<'_>) -> Result<Outcome, String>) -> Row {
    Row { client: Client::Nix, ..row(id, title, run) }
}

/// Declares a row that the Nix of Debian's testing release asks. It is slow, since the first one installs it.
const fn nix_testing(id: &'static str, title: &'static str, run: fn(&Trial<'_>) -> Result<Outcome, String>) -> Row {
    Row { client: Client::NixTesting, ..slow(id, title, run) }
}

/// All rows, in the order of the table.
pub static ROWS: [Row; 39] = [
    row("push", "push a closure", push::once),
    row("push-again", "push it again", push::again),
    row("missing", "`s3-push --missing`", push::missing),
    row("two-pushes", "two pushes at once", push::two_at_once),
    slow("large", "multipart upload of a large object", push::large),
    slow("resume", "kill in a multipart upload, and continue", push::resume),
    row("repair", "`s3-push --repair`", push::repair),
    row("check", "`s3-pull check`", maintenance::check),
    row("check-nars", "`s3-pull check --read-nars`", maintenance::check_nars),
    row("pin", "`s3-push pin` and `unpin`", maintenance::pin),
    row("collect", "`s3-push delete` and `collect`", maintenance::collect),
    row("versioned", "push to a versioned bucket", push::versioned),
    row("key", "`s3-push --key`", objects::key),
    row("reserved", "keys with `+`, `=` and `?`", objects::reserved_characters),
    row("prefix", "a prefix in the bucket", objects::prefix),
    slow("listing", "listing above 1,000 keys", objects::listing),
    row("pull", "pull a closure", pull::closure),
    row("absent", "pull what is missing", pull::absent),
    row("https", "pull over `https://`, with TLS in front", https::pull),
    row("resign", "sign again with a second key", signatures::second_key),
    row("two-resignings", "two re-signings at once", signatures::two_at_once),
    row("anonymous", "anonymous reading", access::anonymous),
    row("policies", "users with the policies of `cache-policy`", access::policies),
    row("region", "requests for another region", access::region),
    row("virtual-host", "bucket in the host name", access::virtual_host),
    row("etag", "ETag is the MD5", conditions::etag),
    row("put-if-none-match", "If-None-Match on PutObject", conditions::put_if_none_match),
    slow("complete-if-none-match", "If-None-Match on CompleteMultipartUpload", conditions::complete_if_none_match),
    row("put-if-match", "If-Match on PutObject", conditions::put_if_match),
    row("get-if-match", "conditional GetObject of a missing key", conditions::get_missing),
    row("delete-md5", "DeleteObjects with Content-MD5", conditions::delete_objects),
    row("last-modified", "resolution of LastModified", conditions::last_modified),
    nix("nix-reads", "Nix reads over `http://` what we wrote", nix::reads),
    nix("nix-https", "Nix reads over `https://`, with TLS in front", https::nix_reads),
    nix("nix-writes", "we read what Nix wrote", nix::writes),
    nix_testing("nix-testing-http", "newer Nix reads over `http://` what we wrote", debian_testing::reads_http),
    nix_testing("nix-testing-s3", "newer Nix reads over `s3://`, unsigned", debian_testing::reads_s3),
    nix_testing("nix-testing-file", "newer Nix reads a `file://` mirror by s3-pull", debian_testing::reads_mirror),
    nix_testing("nix-testing-push", "newer Nix pushes beside s3-push, unsigned", debian_testing::writes),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ROWS;

    #[test]
    fn rows_have_names_of_their_own() {
        let names: BTreeSet<_> = ROWS.iter().map(|row| row.id).collect();
        assert_eq!(names.len(), ROWS.len());
    }
}
