//! Files and directories for `backup-core`: a directory of objects as a sink.

mod local;

pub use local::LocalSink;
