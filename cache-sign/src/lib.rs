//! Keys, signatures and trust; the library behind `cache-sign`.
//!
//! | module | responsibility |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`run`] | turns the command line into one [`run::Mode`] and runs it |
//! | [`sign`], [`keygen`], [`public_key`], [`verify`] | one mode each |
//! | [`keys`] | secret keys, public keys and signatures |
//! | [`key_source`] | reads secret keys from files, file descriptors and the environment |
//! | [`signing_queue`] | signs narinfos and writes them in order |
//! | [`ssh_agent`], [`signer_command`] | sign with a key that this process does not hold |
//! | [`nix_conf`] | reads substituters and trusted keys from nix.conf |
//! | [`trust`] | decides whether a narinfo is trusted |
//! | [`archive_verifier`] | verifies a cache archive |
//! | [`spool`] | stores the NARs of an archive until they are verified |
//! | [`report`] | the JSON report of `cache-sign verify --json` |
//! | [`input`] | opens standard input as narinfo text or a cache archive |

pub mod archive_verifier;
pub mod cli;
pub mod input;
pub mod key_source;
pub mod keygen;
pub mod keys;
pub mod nix_conf;
pub mod public_key;
pub mod report;
pub mod run;
pub mod sign;
pub mod signer_command;
pub mod signing_queue;
pub mod spool;
pub mod ssh_agent;
pub mod trust;
pub mod verify;
