//! Servers written in Java, which Maven downloads with their dependencies in one file.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use cache_tests::Credentials;

use super::{Running, start_program};
use crate::install::Package;

const S3PROXY: Package = Package {
    name: "s3proxy",
    version: "2.6.0",
    file: "s3proxy-2.6.0-jar-with-dependencies.jar",
    duration: "10 seconds",
    install: |package, dir| maven_copy("org.gaul", package, "jar-with-dependencies", dir),
};

const S3MOCK: Package = Package {
    name: "s3mock",
    version: "4.6.0",
    file: "s3mock-4.6.0-exec.jar",
    duration: "30 seconds",
    install: |package, dir| maven_copy("com.adobe.testing", package, "exec", dir),
};

/// Copies a file from Maven Central, with the plugin in a fixed version.
fn maven_copy(group: &str, package: &Package, classifier: &str, dir: &Path) -> Command {
    let mut command = Command::new("mvn");
    let artifact = format!("{group}:{}:{}:jar:{classifier}", package.name, package.version);
    command.args(["--batch-mode", "--quiet", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"]);
    command.arg(format!("-Dartifact={artifact}")).arg(format!("-DoutputDirectory={}", dir.display()));
    command.current_dir(dir);
    command
}

pub(super) fn start_s3proxy() -> Result<Running, String> {
    let jar = S3PROXY.find_or_install()?;
    let credentials = Credentials::random();
    let args = |dir: &Path, endpoint: &str| -> Vec<OsString> {
        let (data, properties) = (dir.join("data"), dir.join("s3proxy.conf"));
        drop(fs::create_dir_all(&data));
        let text = format!(
            "s3proxy.endpoint=http://{endpoint}\ns3proxy.authorization=aws-v2-or-v4\ns3proxy.identity={}\n\
             s3proxy.credential={}\njclouds.provider=filesystem\n\
             jclouds.filesystem.basedir={}\n",
            credentials.access_key,
            credentials.secret_key,
            data.display()
        );
        drop(fs::write(&properties, text));
        vec!["-Xmx256m".into(), "-jar".into(), jar.clone().into(), "--properties".into(), properties.into()]
    };
    let server = start_program(Path::new("java"), args, &[])?;
    let endpoint = server.endpoint.clone();
    Ok(Running::new(S3PROXY.version, &endpoint, credentials.clone(), server))
}

/// It accepts every signature, and anonymous requests.
pub(super) fn start_s3mock() -> Result<Running, String> {
    let jar = S3MOCK.find_or_install()?;
    let args = |dir: &Path, endpoint: &str| -> Vec<OsString> {
        let (host, port) = endpoint.split_once(':').unwrap_or((endpoint, ""));
        let data = dir.join("data");
        drop(fs::create_dir_all(&data));
        vec![
            "-Xmx256m".into(),
            "-jar".into(),
            jar.clone().into(),
            format!("--server.address={host}").into(),
            // The port with TLS, which is not used.
            "--server.port=0".into(),
            format!("--com.adobe.testing.s3mock.httpPort={port}").into(),
            format!("--com.adobe.testing.s3mock.root={}", data.display()).into(),
        ]
    };
    let server = start_program(Path::new("java"), args, &[])?;
    let endpoint = server.endpoint.clone();
    let running = Running::new(S3MOCK.version, &endpoint, Credentials::random(), server);
    Ok(Running { is_atomic: false, ..running })
}
