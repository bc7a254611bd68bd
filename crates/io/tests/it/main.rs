//! Tests of the crate. Downloads of models are tested where models are loaded
//! (`crates/llama/tests/it/hub.rs`).

#[cfg(feature = "hub")]
mod hub;
mod io;
#[cfg(feature = "hub")]
mod server;
