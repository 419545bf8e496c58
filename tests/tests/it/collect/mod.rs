//! Years with one bucket: pins, and the deletion of paths that nobody needs.

mod model;
