//! `DirectoryTarget`, judged by other tools: GNU tar makes the archives, rsync compares the trees.

mod hostile;
mod replace;
mod round_trip;
mod support;
