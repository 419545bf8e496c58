//! `flake.nix` and the NixOS module, evaluated as far as that is possible without nixpkgs.

use cache_tests::{Scratch, nix, repository};
use serde_json::Value;

use super::units::{SERVICES, service_settings};

fn evaluate(expression: &str) -> Value {
    let scratch = Scratch::new();
    scratch.write("expression.nix", expression);
    let json = scratch.sh("nix-instantiate --eval --strict --json expression.nix").ok();
    serde_json::from_str(&json).unwrap()
}

fn module(settings: &str) -> Value {
    let top = repository().display().to_string();
    evaluate(&format!(
        "import {top}/tests/tests/it/delivery/evaluate-module.nix {{
           module = {top}/xtask/dist/module.nix; settings = {settings}; }}"
    ))
}

const ALL: &str = r#"{
    enable = true; cache = "s3://my-cache?endpoint=http://h%20"; credentialsFile = "/run/secrets/aws";
    queue = { enable = true; signingKeyFile = "/run/secrets/cache.sec"; };
    collect.enable = true; check = { enable = true; publicKeys = [ "a-1:x" "b-1:y" ]; };
}"#;

#[test]
fn the_module_has_the_settings_of_the_units() {
    if !nix::available() {
        return;
    }
    let config = module(ALL);
    for service in SERVICES {
        let found = &config["systemd"]["services"][service]["serviceConfig"];
        for (name, expected) in service_settings(service) {
            // Paths of the package, and what the options of the module set.
            if ["ExecStart", "ExecStartPre", "Environment", "EnvironmentFile", "LoadCredential"]
                .contains(&name.as_str())
            {
                continue;
            }
            let text = |value: &Value| match value {
                Value::Bool(true) => "yes".to_owned(),
                Value::Number(number) => number.to_string(),
                other => other.as_str().unwrap_or_else(|| panic!("{service}: {name} is {other}")).to_owned(),
            };
            let found = match &found[&name] {
                Value::Array(values) => values.iter().map(text).collect(),
                value => vec![text(value)],
            };
            assert_eq!(found, expected, "{service}: {name}");
        }
    }
}

#[test]
fn the_module_passes_secrets_as_credentials() {
    if !nix::available() {
        return;
    }
    let config = module(ALL);
    let queue = &config["systemd"]["services"]["nix-s3-cache-queue"];
    let credentials = serde_json::json!(["aws-credentials:/run/secrets/aws", "cache.sec:/run/secrets/cache.sec"]);
    assert_eq!(queue["serviceConfig"]["LoadCredential"], credentials);
    assert_eq!(queue["environment"]["NIX_S3_CACHE"], "s3://my-cache?endpoint=http://h%%20");
    assert_eq!(queue["environment"]["CACHE_KEY_FILE"], "%d/cache.sec");
    assert_eq!(queue["serviceConfig"]["ExecStart"], "/package/lib/nix-s3-cache/push-queue");
    assert_eq!(config["nix"]["settings"]["post-build-hook"], "/package/lib/nix-s3-cache/queue-hook");
    let collect = &config["systemd"]["services"]["nix-s3-cache-collect"]["serviceConfig"];
    assert_eq!(collect["ExecStart"], "/package/bin/s3-push collect \"--older-than\" \"30d\"");
    let check = &config["systemd"]["services"]["nix-s3-cache-check"];
    assert_eq!(check["environment"]["CACHE_PUBLIC_KEY"], "a-1:x b-1:y");
}

#[test]
fn the_module_does_nothing_unless_it_is_enabled() {
    if !nix::available() {
        return;
    }
    assert_eq!(module("{ }"), serde_json::json!({}));
    let config = module(r#"{ enable = true; cache = "s3://x"; credentialsFile = "/x"; }"#);
    assert_eq!(config["systemd"], Value::Null);
}

/// Only the structure: the functions of nixpkgs return their arguments.
#[test]
fn the_flake_has_packages_an_overlay_a_shell_and_a_module() {
    if !nix::available() {
        return;
    }
    let top = repository().display().to_string();
    let outputs = evaluate(&format!(
        r#"let
             lib = {{
               genAttrs = names: f: builtins.listToAttrs (map (name: {{ inherit name; value = f name; }}) names);
               importTOML = file: builtins.fromTOML (builtins.readFile file);
             }};
             pkgs = {{
               callPackage = file: arguments: {{ inherit (arguments) version; isFile = builtins.pathExists file; }};
               mkShell = arguments: builtins.length arguments.packages;
             }} // lib.genAttrs [ "cargo" "clippy" "rustc" "rustfmt" "minio" "minio-client" "versitygw" "shellcheck" ] (name: name);
             self = outputs // {{ outPath = "{top}"; }};
             outputs = (import {top}/flake.nix).outputs {{
               inherit self;
               nixpkgs = {{ inherit lib; legacyPackages = {{ x86_64-linux = pkgs; aarch64-linux = pkgs; }}; }};
             }};
           in {{
             inherit (outputs) packages devShells;
             overlay = outputs.overlays.default pkgs {{ }};
             modules = builtins.length outputs.nixosModules.default.imports;
           }}"#
    ));
    let package = serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "isFile": true});
    for system in ["x86_64-linux", "aarch64-linux"] {
        assert_eq!(outputs["packages"][system]["default"], package);
        assert_eq!(outputs["devShells"][system]["default"], 8);
    }
    assert_eq!(outputs["overlay"]["nix-s3-cache"], package);
    assert_eq!(outputs["modules"], 1);
}

#[test]
fn the_package_parses() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    scratch
        .sh(&format!("nix-instantiate --parse '{}' >/dev/null", repository().join("xtask/dist/package.nix").display()))
        .ok();
}
