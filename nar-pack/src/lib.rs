//! `nar-pack` is two things: the tool that packs and unpacks NARs, and the base library of the workspace. Every other tool
//! builds on it: on the formats of a Nix store (store paths, NAR, export stream, path info) and on the conventions of a
//! pipeline stage (errors and exit statuses, messages, standard streams). It knows nothing of hashes, compression, keys
//! or the network, and contains no async code.
//!
//! | module | contents |
//! | --- | --- |
//! | [`cli`], [`run()`] | the command line and the modes of the tool |
//! | [`store_path`] | store directories, store paths, path lists |
//! | [`path_argument`] | what a user may write for a store path |
//! | [`nar`] | packing, parsing, unpacking and listing NARs |
//! | [`export`] | the export stream of `nix-store --export` |
//! | [`references`] | scanning for references, sorting by references |
//! | [`path_info`] | metadata from `nix path-info --json` or an installed Nix |
//! | [`html_page`] | web pages in one file |
//! | [`root_causes`] | errors of many paths, grouped by root cause |
//! | [`root_dir`] | directories below a root such as that of `--root`, without leaving it |
//! | [`error`] | the error type of every tool, with exit status and hint |
//! | [`option_values`] | the numbers and byte sizes in the options of every tool |
//! | [`json_lines`] | JSON output: one object per line |
//! | [`drawn_line`] | output to a terminal on which a progress bar is drawn |
//! | [`process`] | `main` of every tool, messages on standard error |
//! | [`redact`] | removal of control characters and secret keys from messages |
//! | [`regular_file`] | opening files that must be regular files |
//! | [`stdio`] | standard input and output |
//! | [`sync`] | mutexes of threads that may panic |

pub mod access_list;
pub mod cli;
pub mod drawn_line;
pub mod error;
pub mod export;
mod export_paths;
pub mod html_page;
pub mod json_lines;
pub mod nar;
pub mod option_values;
pub mod path_argument;
pub mod path_info;
pub mod process;
pub mod redact;
pub mod references;
pub mod regular_file;
pub mod root_causes;
pub mod root_dir;
mod run;
pub mod stdio;
pub mod store_path;
pub mod sync;

pub use run::run;

const TOOL: &str = "nar-pack";
