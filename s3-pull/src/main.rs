//! The `s3-pull` command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main("s3-pull", s3_pull::run)
}
