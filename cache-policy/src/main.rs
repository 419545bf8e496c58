//! The binary `cache-policy`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main("cache-policy", cache_policy::run::run)
}
