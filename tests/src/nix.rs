//! A real Nix: its store, a small closure that it builds without network, and empty stores to fill.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::{Scratch, report_missing, unique};

/// Returns whether Nix is installed. If not, prints a line, and panics if `CI=true`.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    let available = *AVAILABLE.get_or_init(|| {
        let output = Command::new("nix-store").arg("--version").stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    });
    if !available {
        report_missing("Nix", "`apt-get install nix-bin` gets it on Debian");
    }
    available
}

/// Three real store paths with unique names and contents.
#[derive(Debug, Clone)]
pub struct Closure {
    /// Has no references.
    pub lib: String,
    /// Refers to `lib`; `bin/app` prints `greeting`.
    pub app: String,
    /// Refers to `app` by a symbolic link `bin`, so that `bin/app` runs from here too.
    pub top: String,
    /// The output of the program.
    pub greeting: String,
}

impl Closure {
    /// Returns all paths, references first.
    pub fn paths(&self) -> [&str; 3] {
        [&self.lib, &self.app, &self.top]
    }
}

/// Builds `lib`, `app` and `top` in the local store with /bin/sh as the builder.
pub fn build(scratch: &Scratch) -> Closure {
    let seed = unique("");
    let file = scratch.path().join(format!("closure-{seed}.nix"));
    fs::write(&file, expression(&seed)).unwrap();
    let file = file.display();
    // The output of the builders matters only if one fails.
    let build = format!("nix-build --no-out-link --option sandbox false '{file}' 2>build.log -A");
    let out = |name: &str| scratch.sh(&format!("{build} {name} || {{ cat build.log >&2; exit 1; }}")).ok();
    Closure { lib: out("lib"), app: out("app"), top: out("top"), greeting: format!("greetings from {seed}") }
}

/// Removes the paths of the closure from the local store; no other path may refer to them.
pub fn delete(scratch: &Scratch, closure: &Closure) {
    // References last: Nix does not delete a path that another one refers to.
    let Closure { lib, app, top, .. } = closure;
    scratch.sh(&format!("nix-store --delete {top} {app} {lib}")).ok();
}

/// Creates the directory of an empty store, for `--store DIR` or `NIX_REMOTE=DIR`; `/nix/store/x` is `DIR/nix/store/x`.
pub fn fresh_store(scratch: &Scratch) -> String {
    let dir = scratch.path().join(unique("store-"));
    fs::create_dir(&dir).unwrap();
    dir.to_str().expect("the path of the temporary directory is UTF-8").to_owned()
}

fn expression(seed: &str) -> String {
    format!(
        r#"let
  make = name: script: derivation {{
    name = "${{name}}-{seed}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
  }};
in rec {{
  lib = make "lib" ''
    mkdir -p $out/share
    echo 'greetings from {seed}' > $out/share/greeting
    : > $out/share/empty
    ln -s greeting $out/share/link
  '';
  app = make "app" ''
    mkdir -p $out/bin
    printf '#!/bin/sh\nexec cat "''${{GREETING_ROOT:-}}${{lib}}/share/greeting"\n' > $out/bin/app
    chmod +x $out/bin/app
  '';
  top = make "top" ''
    mkdir -p $out
    ln -s ${{app}}/bin $out/bin
  '';
}}
"#
    )
}
