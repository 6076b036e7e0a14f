//! Runs that died, and those that take over what they had finished.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod adopting;
mod damage;
mod faults;
mod races;
mod support;
