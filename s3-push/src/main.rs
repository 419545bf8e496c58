//! The binary `s3-push`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main("s3-push", s3_push::run)
}
