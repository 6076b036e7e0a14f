//! `DirectoryTarget`, judged by other tools: GNU tar makes the archives, rsync compares the trees.

mod crash;
mod hostile;
mod replace;
mod round_trip;
mod speed;
mod support;
mod unprivileged;
