//! Scans standard input for references to the store paths in a list and prints those found. `cargo xtask bench pack`
//! measures it.

use std::io::Read;
use std::sync::Arc;

use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::references::{Candidates, Scanner};
use nar_pack::stdio;
use nar_pack::store_path::{StoreDir, read_path_list};

fn main() -> Result {
    let store_dir = StoreDir::new("/nix/store")?;
    let list = std::env::args_os().nth(1).ok_or_else(|| Error::usage("no path list given"))?;
    let list = std::io::BufReader::new(std::fs::File::open(list)?);
    let candidates: Candidates = read_path_list(list, &store_dir)?.into_iter().collect();
    let mut scanner = Scanner::new(Arc::new(candidates));
    let mut input = stdio::stdin("data to scan")?;
    let mut buffer = vec![0; stdio::BUFFER_SIZE];
    loop {
        match input.read(&mut buffer)? {
            0 => break,
            n => scanner.feed(&buffer[..n]),
        }
    }
    for path in scanner.finish() {
        process::print_message("scan", store_dir.join(&path));
    }
    Ok(())
}
