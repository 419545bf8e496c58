//! s3-push: what it writes, what it refuses, and how it resumes.

mod hostile;
mod missing;
mod object_options;
mod output;
mod refusals;
mod repair;
mod resume;
mod upstream;
