//! Device of an example: `--device`.

pub use burn_lora::prelude::Place;
