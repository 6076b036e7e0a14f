//! Promises of continuous logs: no entry is skipped without a word, what is stored can be restored to any moment, and
//! every verb sees slices.

// The helpers of tests are tests too, which the lint's own exception does not see.
#![allow(clippy::unwrap_used)]

mod conformance;
mod copies;
mod gaps;
mod restore;
mod running;
mod support;
mod verbs;
