//! The tests of this crate, as one program.

mod classifier;
mod common;
mod data;
mod distillation;
mod folder;
mod golden;
mod heads;
mod methods;
mod metric;
mod neftune;
mod optim;
mod plan;
mod preference_records;
mod preferences;
mod rates;
mod resume;
mod run;
mod run_config;
mod runs;
mod schedule;
mod step;
mod steps;
mod sweep;
mod watch;
