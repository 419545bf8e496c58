//! `cargo xtask bench pull`: how long a closure takes from a bucket to a fresh root, by `s3-pull` and by Nix, as a ratio
//! to a plain download of the same files with what unpacks them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::bench::{Bench, Measured, Options, Proxy, medians, size_of};
use crate::build::{Profile, tools};
use crate::pipeline::{Ended, Stage};
use crate::server::{Server, target, url};
use crate::session::{self, output};

/// A compression of the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Zstd,
    Xz,
}

impl Method {
    const ALL: [Self; 2] = [Self::Zstd, Self::Xz];

    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }

    /// The bucket with what is compressed so, and the directory that it is filled from.
    fn bucket(self) -> &'static str {
        match self {
            Self::Zstd => "cache-zstd",
            Self::Xz => "cache-xz",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Zstd => "zst",
            Self::Xz => "xz",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    /// Download by MinIO's client and decompression on every processor: what all others are compared to.
    Mc,
    /// The same with rclone.
    Rclone,
    /// `s3-pull` over S3.
    S3,
    /// `s3-pull` over plain HTTP.
    Http,
    /// `nix copy` over plain HTTP, which is how this Nix can read from MinIO.
    Nix,
}

impl Case {
    const ALL: [Self; 5] = [Self::Mc, Self::Rclone, Self::S3, Self::Http, Self::Nix];

    /// Its name on the command line.
    fn key(self) -> &'static str {
        match self {
            Self::Mc => "mc",
            Self::Rclone => "rclone",
            Self::S3 => "s3",
            Self::Http => "http",
            Self::Nix => "nix",
        }
    }

    fn name(self, method: Method) -> String {
        let method = method.name();
        match self {
            Self::Mc => format!("mc cp -r, then {method} -d"),
            Self::Rclone => format!("rclone copy --transfers 16, then {method} -d"),
            Self::S3 => format!("s3-pull s3://, {method}"),
            Self::Http => format!("s3-pull http://, {method}"),
            Self::Nix => format!("nix copy --from http://, {method}"),
        }
    }

    /// Whether it only copies and unpacks files.
    fn is_plain(self) -> bool {
        matches!(self, Self::Mc | Self::Rclone)
    }
}

/// What `--only` can name.
pub fn keys() -> Vec<&'static str> {
    Case::ALL.map(Case::key).to_vec()
}

pub fn run(options: &Options) -> Outcome {
    let bench = Bench::new(tools(Profile::Release)?, options)?;
    let site = Site::fill(&bench)?;
    let mut rows = Vec::new();
    for &latency in &options.latencies {
        let proxy = (latency > 0).then(|| Proxy::start(&bench.bin, &site.server.endpoint, latency)).transpose()?;
        let endpoint = proxy.as_ref().map_or(&site.server.endpoint, |proxy| &proxy.endpoint);
        for method in Method::ALL {
            let mut runs = Vec::new();
            for number in 1..=options.runs {
                for case in Case::ALL.into_iter().filter(|&case| options.wants(case.key()) && site.can(case, method)) {
                    eprintln!("{latency} ms, run {number} of {}: {}", options.runs, case.name(method));
                    runs.push((case.name(method), site.measure(case, method, endpoint)?));
                }
            }
            let limits = [Case::Mc, Case::Rclone].map(|case| case.name(method));
            rows.extend(medians(&runs, latency, [&limits[0], &limits[1]]));
        }
    }
    let note = "/ mc, / rcl.: wall-clock time divided by that of a plain download\n\
                with the decompression of each file, on every processor, at the same latency.";
    options.report(&rows, &bench.shape("zstd and xz", options), note)
}

/// A server with the closure in a bucket for each method, and the directory that it is pulled into.
struct Site<'a> {
    bench: &'a Bench,
    server: Server,
    out: PathBuf,
    key: String,
}

impl<'a> Site<'a> {
    fn fill(bench: &'a Bench) -> Result<Self, String> {
        let server = Server::start(&bench.minio, &bench.dir.path.join("minio"))?;
        for method in Method::ALL {
            let bucket = method.bucket();
            eprintln!("Filling {bucket}");
            bench.finish_cache(method.name(), bucket)?;
            server.make_bucket(bucket)?;
            // Neither Nix nor our HTTP has credentials.
            server.run_mc(&["anonymous", "set", "public", &target(bucket)])?;
            let dir = bench.dir.path.join(bucket);
            server.run_mc(&["cp", "--recursive", &format!("{}/", dir.display()), &target(bucket)])?;
            fs::remove_dir_all(&dir).map_err(|error| format!("cannot remove {}: {error}", dir.display()))?;
        }
        let key = fs::read_to_string(bench.dir.path.join("key.pub"));
        let key = key.map_err(|error| format!("cannot read the public key: {error}"))?.trim().to_owned();
        Ok(Self { bench, server, out: bench.dir.path.join("out"), key })
    }

    /// Whether what it takes is installed.
    fn can(&self, case: Case, method: Method) -> bool {
        let installed = |program| output(session::command(program).arg("--version")).is_ok();
        let can = match case {
            Case::Mc => installed(method.name()),
            Case::Rclone => self.bench.rclone && installed(method.name()),
            Case::S3 | Case::Http => true,
            Case::Nix => installed("nix"),
        };
        if !can {
            eprintln!("xtask: not measured, since it is not installed: {}", case.name(method));
        }
        can
    }

    /// Measures one command into a fresh directory.
    fn measure(&self, case: Case, method: Method, endpoint: &str) -> Result<Measured, String> {
        self.settle()?;
        let asked = self.server.requests()?;
        let (mut wall, mut ended) = self.bench.run(vec![self.fetch(case, method, endpoint)], "paths", "output")?;
        let requests = self.server.requests()? - asked;
        if case.is_plain() {
            let (unpacking, stages) = self.unpack(method)?;
            wall += unpacking;
            ended.extend(stages);
        }
        self.check(case, method)?;
        Ok(Measured {
            wall,
            cpu: ended.iter().map(|stage| stage.cpu).sum(),
            peak: ended.iter().map(|stage| stage.peak).max().unwrap_or(0),
            requests: Some(requests),
            bytes: size_of(&self.out),
        })
    }

    fn fetch(&self, case: Case, method: Method, endpoint: &str) -> Stage {
        let (bench, bucket) = (self.bench, method.bucket());
        let http = format!("http://{endpoint}/{bucket}");
        let out = self.out.display().to_string();
        match case {
            Case::Mc => {
                let command = self.server.mc(endpoint, &["cp", "--recursive", &target(bucket), &out]);
                Stage { name: "mc", command }
            }
            Case::Rclone => Stage { name: "rclone", command: self.rclone(bucket, endpoint, &out) },
            Case::S3 | Case::Http => {
                let mut command = bench.tool("s3-pull", &["--recursive", "--stdin", "--quiet", "--root", &out]);
                command.args(["--trusted-public-key", &self.key]);
                if case == Case::S3 {
                    command.arg(url(endpoint, bucket));
                    self.server.authorise(&mut command);
                } else {
                    command.arg(http);
                }
                Stage { name: "s3-pull", command }
            }
            Case::Nix => {
                let mut command = bench.command("nix");
                let config = "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\n";
                command.env("NIX_CONFIG", format!("{config}trusted-public-keys = {}\n", self.key));
                command.args(["copy", "--from", &http, "--to", &out]);
                command.args(bench.entries.iter().map(|entry| &entry.path));
                Stage { name: "nix", command }
            }
        }
    }

    fn rclone(&self, bucket: &str, endpoint: &str, out: &str) -> Command {
        let mut command = self.bench.command("rclone");
        command.args(["copy", "--quiet", "--transfers", "16", "--checkers", "16"]);
        command.arg(format!("bench:{bucket}")).arg(out);
        let address = format!("http://{endpoint}");
        for (name, value) in [
            ("TYPE", "s3"),
            ("PROVIDER", "Minio"),
            ("REGION", "us-east-1"),
            ("ACCESS_KEY_ID", &self.server.user),
            ("SECRET_ACCESS_KEY", &self.server.password),
            ("ENDPOINT", &address),
        ] {
            command.env(format!("RCLONE_CONFIG_BENCH_{name}"), value);
        }
        command
    }

    /// Decompresses what was downloaded, a share of the files on each processor.
    fn unpack(&self, method: Method) -> Result<(Duration, Vec<Ended>), String> {
        let mut files = self.downloaded(method.extension())?;
        files.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let processors = session::processors().min(files.len());
        let share = |index| {
            let mut command = session::command(method.name());
            command.args(["-d", "-q", "-k", "-f", "--"]).current_dir(&self.bench.dir.path);
            command.args(files.iter().skip(index).step_by(processors).map(|(_, file)| file));
            Stage { name: method.name(), command }
        };
        self.bench.run((0..processors).map(share).collect(), "paths", "output")
    }

    /// The files of a NAR folder that end so, with their sizes.
    fn downloaded(&self, extension: &str) -> Result<Vec<(u64, PathBuf)>, String> {
        let dir = self.out.join("nar");
        let entries = fs::read_dir(&dir).map_err(|error| format!("nothing in {}: {error}", dir.display()))?;
        let files =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == extension));
        Ok(files.map(|path| (path.metadata().map_or(0, |meta| meta.len()), path)).collect())
    }

    /// Makes the machine as if nothing had been before.
    fn settle(&self) -> Outcome {
        let home = self.bench.dir.path.join("home");
        for dir in [&home, &self.out] {
            // Store paths are read-only.
            let script = "[ ! -e \"$1\" ] || { chmod -R u+w -- \"$1\"; rm -rf -- \"$1\"; }; mkdir -p -- \"$1\"; sync";
            output(session::command("bash").args(["-euc", script, "settle"]).arg(dir))?;
        }
        Ok(())
    }

    /// A measurement of what did not arrive is none.
    fn check(&self, case: Case, method: Method) -> Outcome {
        let (there, wanted) = if case.is_plain() {
            (self.downloaded("nar")?.len(), self.downloaded(method.extension())?.len())
        } else {
            let entries = fs::read_dir(self.out.join("nix/store")).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            (names.filter(|name| !name.starts_with('.')).count(), self.bench.entries.len())
        };
        if there == wanted && there > 0 {
            return Ok(());
        }
        Err(format!("{}: {there} of {wanted} arrived", case.name(method)))
    }
}
