//! Shared by all programs, with the program `burn-lora`.

#![allow(unused_imports)]

#[macro_use]
#[path = "../../crates/cli/src/program.rs"]
mod shared;

pub use shared::*;
