//! MinIO and versitygw, which `cargo xtask minio` installs for the tests too.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use cache_tests::{Minio, MinioOptions, Versitygw};

use super::{DOMAIN, Running, Users};

pub(super) fn start_minio() -> Result<Running, String> {
    let options = MinioOptions { domain: Some(DOMAIN), ..MinioOptions::default() };
    let minio = Rc::new(Minio::start_with(options).ok_or("MinIO is not installed; `cargo xtask minio` installs it")?);
    let version = go_version(minio.program());
    let (endpoint, root, of_users) = (minio.endpoint(), minio.root(), Rc::clone(&minio));
    let running = Running::new(version, &endpoint, root, minio).with_domain();
    let users = Users::IdentityPolicies(Box::new(move |policy| of_users.add_user(policy)));
    Ok(Running { users: Some(users), ..running })
}

pub(super) fn start_versitygw() -> Result<Running, String> {
    let server = Rc::new(Versitygw::start().ok_or("versitygw is not installed; `cargo xtask minio` installs it")?);
    let version = go_version(server.program());
    let (endpoint, root, of_users) = (server.endpoint(), server.root(), Rc::clone(&server));
    let users = Users::BucketPolicies(Box::new(move || of_users.add_user()));
    Ok(Running { users: Some(users), ..Running::new(version, &endpoint, root, server) })
}

/// Returns the version of the main module of a program that `go install` built.
fn go_version(program: &Path) -> String {
    let output = Command::new("go").args(["version", "-m"]).arg(program).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let module = text.lines().find_map(|line| line.trim_start().strip_prefix("mod\t"));
    let version = module.and_then(|module| module.split('\t').nth(1)).unwrap_or("unknown");
    version.trim_start_matches('v').to_owned()
}
