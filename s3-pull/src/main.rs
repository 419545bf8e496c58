//! `s3-pull`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::stage::main("s3-pull", s3_pull::run)
}
