//! The `nar-pack` executable; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main("nar-pack", nar_pack::run)
}
