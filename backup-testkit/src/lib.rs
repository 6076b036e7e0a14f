//! Conformance suites, faulty sinks and test servers for authors of `backup-core` sources, sinks and transforms.
//!
//! Only ever a dev-dependency, used from `tests/` directories.

pub mod tools;
pub mod transform;
