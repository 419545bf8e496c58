//! `narinfo-gen`: hashes and compresses NARs, and writes their narinfos. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nar_pack::process::main("narinfo-gen", narinfo_gen::run::run)
}
