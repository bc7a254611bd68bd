//! The tests of this crate, as one program.

mod common;
mod golden;
mod optim;
mod run;
mod schedule;
mod step;
mod watch;
