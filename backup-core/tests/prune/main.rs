//! Prune, pins and sweeps over in-memory sinks: what goes, what stays, and what happens when things go wrong meanwhile.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]
// `into_result().unwrap()` has looked at the report.
#![allow(unused_must_use)]

mod faults;
mod pins;
mod races;
mod rules;
mod several_sinks;
mod support;
mod sweep;
