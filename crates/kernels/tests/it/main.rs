//! The tests of this crate, in one program. `BURN_LORA_GPU=wgpu` (or `vulkan`, `cuda`) runs them on
//! that device too.

mod attention;
mod cached;
mod common;
mod gemm;
mod offload;
mod ops;
mod optimizer;
mod persist;
