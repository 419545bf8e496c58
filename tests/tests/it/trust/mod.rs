//! Keys and signatures.

mod signatures;
