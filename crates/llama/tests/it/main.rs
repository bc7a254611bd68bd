//! The tests of this crate: one program, so that GPU code is linked once.

mod checkpoints;
mod common;
mod decoders;
mod experts;
mod families;
mod generate;
mod generation;
mod gguf;
mod gguf_out;
mod golden;
mod hub;
mod merge;
mod methods;
mod own_decoder;
mod packed_out;
mod resized;
#[cfg(feature = "hub")]
#[path = "../../../io/tests/it/server.rs"]
#[allow(dead_code)]
mod server;
mod stored;
mod untrusted;
mod vllm;
mod weights;
