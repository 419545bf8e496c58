//! The memory limits in `--help` hold: measures the peak memory of each tool while it processes a large NAR.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::LazyLock;

use cache_tests::pipeline::peak_memory;
use cache_tests::{EmbeddedS3, Random, Scratch, store_path};

const MIB: u64 = 1 << 20;
/// Size of the file: larger than every limit below.
const LARGE_SIZE: usize = 256 << 20;
/// Size of each of the files that follow it: less than a part.
const SMALLER_SIZE: usize = 8_300_000;
/// Number of these files.
const SMALLER_FILES: u64 = 20;
/// Number of bytes that a tool still waits for when it is measured.
const TAIL_SIZE: usize = 4096;

static LARGE_PATH: LazyLock<LargePath> = LazyLock::new(LargePath::new);

/// A store path with a large file, its NAR, a signed cache archive of it, and the credentials of the embedded server.
struct LargePath {
    scratch: Scratch,
    path: String,
}

impl LargePath {
    fn new() -> Self {
        // Statics are not dropped, and this directory takes gigabytes.
        let mut scratch = Scratch::removed_on_interrupt();
        EmbeddedS3::shared().credentials().apply(&mut scratch);
        let path = store_path("large", 1);
        let dir = scratch.path().join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir).unwrap();
        let mut random = Random::new(7);
        let mut file = fs::File::create(dir.join("data")).unwrap();
        for _ in 0..LARGE_SIZE / (1 << 20) {
            file.write_all(&random.bytes(1 << 20)).unwrap();
        }
        let smaller = random.bytes(SMALLER_SIZE);
        let mut paths = vec![path.clone()];
        for seed in 0..SMALLER_FILES {
            let path = store_path("smaller", seed);
            let file = scratch.path().join("root").join(path.trim_start_matches('/'));
            fs::write(file, [seed.to_le_bytes().as_slice(), &smaller].concat()).unwrap();
            paths.push(path);
        }
        scratch.write("paths", paths.join("\n") + "\n");
        scratch.env("P", &path);
        scratch
            .sh("cache-sign keygen k-1 key.sec key.pub
                 nar-pack --root root \"$P\" > nar
                 nar-pack --root root --no-nix --export \"$P\" > export
                 narinfo-gen --no-nix --archive < export | cache-sign -k key.sec > archive
                 nar-pack --root root --no-nix --export --stdin < paths |
                 narinfo-gen --no-nix --archive --compression none > mixed
                 mkdir -p members/log; tar x -C members < archive; head -c 4194304 /dev/zero > members/log/last
                 cd members; tar c nix-cache-info nar *.narinfo log > ../logged; tar c *.narinfo nix-cache-info nar log > ../late")
            .ok();
        Self { scratch, path }
    }

    /// Runs a tool on a file and returns its peak memory when it has read almost all of it.
    fn peak(&self, tool: &str, args: &[&str], input: &str) -> u64 {
        let mut command = self.scratch.command(tool);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let bytes = fs::read(self.scratch.path().join(input)).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&bytes[..bytes.len() - TAIL_SIZE]).unwrap();
        let peak = peak_memory(&child).unwrap();
        stdin.write_all(&bytes[bytes.len() - TAIL_SIZE..]).unwrap();
        drop(stdin);
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(child.wait().unwrap().success(), "{tool} {args:?}: {stderr}");
        peak
    }
}

#[test]
fn memory_does_not_grow_with_the_nar() {
    let s3 = EmbeddedS3::shared();
    let large = &*LARGE_PATH;
    let url = |bucket: &str| s3.cache_url(bucket);
    let [one, two, three] = [(); 3].map(|()| url(&s3.make_bucket()));
    let large_parts = ["--quiet", "--part-size", "16MiB", "--memory", "32MiB", &three];
    let threads = std::thread::available_parallelism().unwrap().get() as u64;
    let path = large.path.clone();
    let cases: [(&str, Vec<&str>, &str, u64); 10] = [
        ("nar-pack", vec!["--list"], "nar", 6 * MIB),
        ("nar-pack", vec!["--unpack", "unpacked"], "nar", 6 * MIB),
        ("narinfo-gen", vec!["--no-nix", "--archive"], "export", (16 + 40 * threads) * MIB),
        ("cache-sign", vec!["-k", "key.sec"], "archive", 6 * MIB),
        ("cache-sign", vec!["verify", "--trusted-public-key-file", "key.pub"], "logged", 16 * MIB),
        ("cache-sign", vec!["verify", "--trusted-public-key-file", "key.pub"], "late", 16 * MIB),
        ("cache-sign", vec!["verify", "--json", "--trusted-public-key-file", "key.pub"], "logged", 16 * MIB),
        ("s3-push", vec!["--quiet", &one], "archive", (96 + 32 + 10 * (threads + 1)) * MIB),
        // These NARs are not compressed and need no decoder.
        ("s3-push", large_parts.to_vec(), "mixed", (32 + 32) * MIB),
        ("s3-push", vec!["--quiet", "--no-nix", &two, &path], "nar", (96 + 32 + 16 + 40 * threads) * MIB),
    ];
    for (tool, args, input, bound) in cases {
        let peak = large.peak(tool, &args, input);
        println!("{tool} {}: {} KiB of {} KiB", args[0], peak / 1024, bound / 1024);
        assert!(peak <= bound, "{tool} {args:?} used {peak} bytes; the limit in its help is {bound}");
    }
}

#[test]
fn memory_of_s3_pull_does_not_grow_with_the_nar() {
    let s3 = EmbeddedS3::shared();
    let large = &*LARGE_PATH;
    let url = s3.cache_url(&s3.make_bucket());
    large.scratch.sh(&format!("s3-push --quiet '{url}' < archive")).ok();
    // The reader reads all but the end, then the peak memory of the writer.
    let measured = large.scratch.sh(&format!(
        "C='{url}'; mkfifo pipe
         s3-pull --nar --trusted-public-key \"$(cat key.pub)\" \"$C\" \"$P\" > pipe & puller=$!
         {{ head -c $(( $(stat -c %s nar) - 2000000 )) > /dev/null
           grep VmHWM /proc/$puller/status; cat > /dev/null; }} < pipe
         wait $puller"
    ));
    let kib: u64 = measured.ok().split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("s3-pull --nar: {kib} KiB");
    // The NAR is decompressed on one thread per processor (at most 8), each with a frame of 4 MiB, compressed and
    // decompressed; malloc may double that.
    let threads = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(kib <= (64 + 11 + 16 * (threads + 1)) * 1024, "s3-pull took {kib} KiB");
}
