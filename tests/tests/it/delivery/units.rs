//! The systemd units in `xtask/dist/systemd`, and the NixOS module, which has the same services.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use cache_tests::{Scratch, repository};

use super::is_installed;

pub(super) const SERVICES: [&str; 3] = ["nix-s3-cache-queue", "nix-s3-cache-collect", "nix-s3-cache-check"];

fn systemd_dir() -> PathBuf {
    repository().join("xtask/dist/systemd")
}

/// Returns the values of the settings in the `[Service]` section of a unit.
pub(super) fn service_settings(service: &str) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(systemd_dir().join(format!("{service}.service"))).unwrap();
    let (_, section) = text.split_once("[Service]\n").unwrap();
    let mut settings = BTreeMap::<String, Vec<String>>::new();
    for line in section.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.split_once('=').unwrap();
        settings.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    settings
}

#[test]
fn services_are_confined() {
    if !is_installed("systemd-analyze", "systemd") {
        return;
    }
    let scratch = Scratch::new();
    for service in SERVICES {
        let unit = systemd_dir().join(format!("{service}.service"));
        // The threshold is in tenths: 20 is an exposure of 2.0.
        let output =
            scratch.sh(&format!("systemd-analyze security --offline=true --threshold=19 '{}'", unit.display()));
        output.ok();
    }
}

#[test]
fn services_get_secrets_as_credentials_only() {
    for service in SERVICES {
        let settings = service_settings(service);
        assert!(settings["LoadCredential"].iter().any(|value| value.starts_with("aws-credentials:")), "{service}");
        for value in settings["Environment"].iter().filter(|value| !value.contains("OPTIONS")) {
            let (name, value) = value.split_once('=').unwrap();
            assert!(value.starts_with("%d/") || ["HOME", "PATH"].contains(&name), "{service}: {name}={value}");
        }
    }
}

#[test]
fn timers_and_paths_have_a_service() {
    for entry in fs::read_dir(systemd_dir()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some((unit, "timer" | "path")) = name.rsplit_once('.') {
            assert!(SERVICES.contains(&unit), "{name}");
        }
    }
}
