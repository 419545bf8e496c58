//! The `s3-pull` command; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main_with_args("s3-pull", s3_pull::expand_command(std::env::args_os()), s3_pull::run)
}
