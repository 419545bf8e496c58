//! The binary `s3-push`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main_with_args("s3-push", s3_push::expand_command(std::env::args_os()), s3_push::run)
}
