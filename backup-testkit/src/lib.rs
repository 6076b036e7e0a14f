//! Conformance suites, faulty sinks and test servers for authors of backup-core sources and sinks.

pub mod retention;
