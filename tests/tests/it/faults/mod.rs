//! Networks and services that fail.

mod requests;
