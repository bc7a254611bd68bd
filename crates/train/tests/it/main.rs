//! The tests of this crate, as one program.

mod common;
mod data;
mod golden;
mod neftune;
mod optim;
mod plan;
mod run;
mod schedule;
mod step;
mod watch;
