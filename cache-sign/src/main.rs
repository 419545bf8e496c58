//! The binary `cache-sign`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main("cache-sign", cache_sign::run::run)
}
