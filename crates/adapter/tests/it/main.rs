//! The tests of this crate, in one program. `BURN_LORA_GPU=wgpu` (or `vulkan`, `cuda`) runs them on
//! that device instead of the CPU.

mod combine;
mod common;
mod files;
mod forward;
mod init;
mod interop;
mod merge;
mod method;
mod peft;
mod reparameterize;
mod selection;
mod targets;
