//! The engine: the only loop. It pulls from sources, runs codecs on blocking threads, and pushes into sinks.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod fanout;
pub(crate) mod feed;
pub(crate) mod index;
pub(crate) mod progress;
pub(crate) mod read;
pub(crate) mod retry;
pub(crate) mod store;
