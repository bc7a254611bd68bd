//! The tests of this crate, as one program.

mod common;
mod golden;
mod schedule;
mod watch;
mod optim;
