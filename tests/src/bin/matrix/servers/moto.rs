//! moto, written in Python, which pip installs into a virtual environment.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use cache_tests::Credentials;

use super::{Running, start_program};
use crate::install::Package;

/// The packages are in a plain directory, which may be renamed; a virtual environment contains its own path.
const MOTO: Package = Package {
    name: "moto",
    version: "5.2.5",
    file: "moto/server.py",
    duration: "1 minute",
    install: |package, dir| {
        let mut command = Command::new("sh");
        let script = r#"python3 -m venv "$1/pip" &&
            "$1/pip/bin/pip" install --quiet --disable-pip-version-check --target "$1" "moto[server]==$2" &&
            rm -r "$1/pip""#;
        command.args(["-c", script, "sh"]).arg(dir).arg(package.version);
        command
    },
};

/// It accepts every signature, and anonymous requests unless a bucket policy denies them.
pub(super) fn start() -> Result<Running, String> {
    let file = MOTO.find_or_install()?;
    let packages = file.parent().and_then(Path::parent).ok_or("no directory")?.display().to_string();
    let args = |_: &Path, endpoint: &str| -> Vec<OsString> {
        let (host, port) = endpoint.split_once(':').unwrap_or((endpoint, ""));
        ["-m", "moto.server", "-H", host, "-p", port].map(OsString::from).to_vec()
    };
    let server = start_program(Path::new("python3"), args, &[("PYTHONPATH", &packages)])?;
    let endpoint = server.endpoint.clone();
    Ok(Running::new(MOTO.version, &endpoint, Credentials::random(), server))
}
