//! The tests of this crate, in one program. `BURN_LORA_GPU=wgpu` (or `vulkan`, `cuda`) runs them on
//! that device too.

mod bitsandbytes;
mod borders;
mod common;
mod eight_bit;
mod few;
mod fp8;
mod golden;
mod lowrank;
mod packed;
mod properties;
mod pull_back;
