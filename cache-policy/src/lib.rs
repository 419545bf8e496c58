//! Policies and configurations of a bucket that serves as a Nix binary cache, and the nix.conf of its clients; the
//! library behind `cache-policy`.
//!
//! | module | responsibility |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`mode`] | turns the command line into one [`mode::Mode`]; rejects flags that do not apply |
//! | [`run`] | prints the document, or edits the nix.conf |
//! | [`bucket`] | the bucket argument and `$NIX_S3_CACHE` |
//! | [`documents`] | the documents, as types that serialize to the JSON of S3 and IAM |
//! | [`infrastructure`] | the documents as resources of OpenTofu and CloudFormation |
//! | [`landing_page`] | the page that a visitor of the bucket sees |
//! | [`nix_conf`] | the nix.conf lines of a client, and merging them into a file |
//! | [`url_report`] | what an `s3://` URL means, and whether every client reads it |

pub mod bucket;
pub mod cli;
pub mod documents;
pub mod infrastructure;
pub mod landing_page;
pub mod mode;
pub mod nix_conf;
pub mod run;
pub mod url_report;
