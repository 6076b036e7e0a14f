//! Object store sinks against real servers and stand-ins.

mod auth;
mod completing;
mod conformance;
mod crash;
mod damage;
mod engine;
mod faults;
mod features;
mod gcs;
mod listing;
mod multipart;
mod probe;
mod profile;
mod reading;
mod replicate;
mod retention;
mod servers;
