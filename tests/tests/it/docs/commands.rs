//! The commands of the documentation, run page by page as a reader types them.
//!
//! Each `sh` block is run, in the order of the page and in one shell, unless the line before it says
//! `<!-- not run: REASON -->`. A block that begins with `#!` and a comment with a file name is written to that file.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::blocks::{Block, blocks};
use super::links::pages;
use crate::pipelines::examples::Project;
use cache_tests::{EmbeddedS3, Minio, Scratch, nix, repository};

/// A page, and what its reader has at hand beside what [`Reader::new`] provides.
struct Page {
    file: &'static str,
    setup: &'static str,
}

/// A key pair, as many pages assume.
const KEYS: &str = "cache-sign keygen reader-1 key.sec key.pub; KEY=$(cat key.pub)\n";

/// The pages with commands.
const PAGES: [Page; 13] = [
    // The pipelines of the README use a second host, a second cache, contributors and directories of the system.
    Page {
        file: "README.md",
        setup: "ssh() { shift; bash -c \"$*\"; }
                A=$C B=$SECOND; mkdir -p site srv/cache mnt; echo page > site/index.html
                for name in alice bob carol new; do cache-sign keygen $name-1 $name.sec $name.pub; done
                ALICE=$(cat alice.pub) BOB=$(cat bob.pub) CAROL=$(cat carol.pub)
                nar-pack --export -r ./result | narinfo-gen --archive | cache-sign -k alice.sec -k bob.sec > cache.tar\n",
    },
    Page { file: "docs/aws.md", setup: "" },
    Page { file: "docs/bucket.md", setup: KEYS },
    Page { file: "docs/ci.md", setup: KEYS },
    Page { file: "docs/contributors.md", setup: "RELEASE=$SECOND\n" },
    Page { file: "docs/https.md", setup: KEYS },
    Page { file: "docs/json.md", setup: KEYS },
    Page { file: "docs/moving.md", setup: KEYS },
    Page { file: "docs/nixos.md", setup: KEYS },
    // A path that is published, and old enough to be collected.
    Page {
        file: "docs/operations.md",
        setup: "cache-sign keygen reader-1 key.sec key.pub; KEY=$(cat key.pub) BRANCH=main JOB_NUMBER=7 B=$SECOND
                export NIX_CONFIG=\"$NIX_CONFIG\"$'\\n'\"trusted-public-keys = $KEY\"
                nar-pack --export -r ./result | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"
                for pin in pr-17 pr-18; do readlink -f result | s3-push pin \"$C\" $pin; done
                echo old > old; nar-pack old | s3-push --name old \"$C\"
                find \"$BUCKET\" -type f -exec touch -d '40 days ago' {} +
                for n in 1 2 3 4 5 6 7; do nar-pack old | s3-push --name young-$n \"$C\"; done\n",
    },
    Page {
        file: "docs/pulling.md",
        setup: "cache-sign keygen reader-1 key.sec key.pub; KEY=$(cat key.pub) A=$C B=$SECOND; mkdir mnt
                export NIX_CONFIG=\"$NIX_CONFIG\"$'\\n'\"trusted-public-keys = $KEY\"
                nar-pack --export -r ./result | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"\n",
    },
    Page { file: "docs/services.md", setup: "CI_PASSWORD=a-long-password\n" },
    Page {
        file: "docs/signing.md",
        setup: "cache-sign keygen reader-1 key.sec key.pub.file
                nar-pack --export -r ./result | narinfo-gen --archive > archive\n",
    },
];

/// The project of a reader: its `result`, a checkout of the examples, the bucket `$C` in the directory `$BUCKET`, and the
/// bucket `$SECOND`.
struct Reader {
    project: Project,
}

impl Reader {
    /// Returns None if Nix is not installed.
    fn new() -> Option<Self> {
        let mut project = Project::new()?;
        let s3 = EmbeddedS3::shared();
        let path = project.sh("nix-build --out-link result default.nix 2>/dev/null").ok();
        let scratch = &mut project.scratch;
        scratch.env("P", path).env("C", s3.cache_url(&project.bucket)).env("BUCKET", s3.path(&project.bucket, ""));
        scratch.env("SECOND", s3.cache_url(&s3.make_bucket()));
        let examples = repository().join("docs/examples");
        scratch.sh(&format!("mkdir ci docs; cp {0}/publish.sh ci; cp -r {0} docs", examples.display())).ok();
        Some(Self { project })
    }

    /// Runs the blocks of a page.
    #[track_caller]
    fn run(&self, page: &Page) {
        let text = fs::read_to_string(repository().join(page.file)).unwrap();
        let mut script = page.setup.to_owned();
        for block in runnable(&text) {
            match file_of(&block.text) {
                Some(name) => {
                    self.project.scratch.write(name, format!("{}\n", block.text));
                    self.project.scratch.sh(&format!("chmod +x {name}")).ok();
                }
                // In the output of a failure, the last of these lines shows which block failed.
                None => writeln!(script, "echo {}:{} >&2\n{}", page.file, block.line, local(&block.text)).unwrap(),
            }
        }
        self.project.scratch.sh(&script).ok();
    }
}

/// Returns the blocks that are run.
fn runnable(page: &str) -> impl Iterator<Item = Block> {
    blocks(page).into_iter().filter(|block| block.language == "sh" && block.not_run.is_none())
}

/// Returns the name of the file that a block is to be written to.
fn file_of(block: &str) -> Option<&str> {
    let mut lines = block.lines();
    lines.next().filter(|line| line.starts_with("#!"))?;
    lines.next()?.strip_prefix("# ")?.split([',', ' ']).next()
}

/// Replaces directories of the system by those below the working directory.
fn local(script: &str) -> String {
    script.replace(" /mnt ", " ./mnt ").replace("/srv/cache", "./srv/cache")
}

#[track_caller]
fn run(file: &str) {
    let Some(mut reader) = Reader::new() else { return };
    if file == "docs/services.md" {
        let Some(minio) = Minio::shared() else { return };
        minio.mc_alias(&mut reader.project.scratch, "minio");
    }
    reader.run(PAGES.iter().find(|page| page.file == file).unwrap());
}

macro_rules! pages {
    ($($name:ident: $file:literal),* $(,)?) => {
        $(#[test] fn $name() { run($file); })*
        const RUN: &[&str] = &[$($file),*];
    };
}

pages! {
    the_commands_of_the_readme_run: "README.md",
    the_commands_of_the_aws_page_run: "docs/aws.md",
    the_commands_of_the_bucket_page_run: "docs/bucket.md",
    the_commands_of_the_ci_page_run: "docs/ci.md",
    the_commands_of_the_contributors_page_run: "docs/contributors.md",
    the_commands_of_the_https_page_run: "docs/https.md",
    the_commands_of_the_json_page_run: "docs/json.md",
    the_commands_of_the_moving_page_run: "docs/moving.md",
    the_commands_of_the_nixos_page_run: "docs/nixos.md",
    the_commands_of_the_operations_page_run: "docs/operations.md",
    the_commands_of_the_pulling_page_run: "docs/pulling.md",
    the_commands_of_the_services_page_run: "docs/services.md",
    the_commands_of_the_signing_page_run: "docs/signing.md",
}

#[test]
fn every_page_with_commands_is_run() {
    let listed: Vec<_> = PAGES.iter().map(|page| page.file).collect();
    assert_eq!(listed, RUN);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let name = page.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
        assert!(RUN.contains(&name.as_str()) || runnable(&text).next().is_none(), "{name} is not run");
    }
}

#[test]
fn every_nix_block_parses() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in blocks(&text).iter().filter(|block| block.language == "nix") {
            scratch.write("block.nix", &block.text);
            let parsed = scratch.sh("nix-instantiate --parse block.nix");
            assert_eq!(parsed.status, 0, "{}:{}: {}", Path::new(&page).display(), block.line, parsed.stderr);
        }
    }
}
