//! s3-push: what it writes, what it refuses, and how it resumes.

mod existing_objects;
mod hostile;
mod ignored_conditions;
mod interrupted_parts;
mod kept_objects;
mod missing;
mod object_options;
mod output;
mod refusals;
mod refused_nars;
mod repair;
mod resume;
mod shared_nars;
mod upstream;
