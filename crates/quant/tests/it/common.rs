//! What the tests of this crate share.

#[path = "../../../../tests/common/devices.rs"]
mod devices;
pub use devices::*;
#[path = "../../../../tests/common/panics.rs"]
mod panics;
pub use panics::panics;

use burn_lora_quant::{Format, QuantConfig};
use std::path::PathBuf;

/// One file of `testdata/nf4`.
pub struct Golden {
    pub name: String,
    pub shape: [usize; 2],
    pub config: QuantConfig,
    bytes: Vec<u8>,
}

impl Golden {
    /// Every file: three shapes, two formats, two block sizes.
    pub fn all() -> Vec<Self> {
        let folder = PathBuf::from("../../testdata/nf4");
        let mut all = vec![];
        for (name, shape) in [("square", [128, 128]), ("wide", [48, 320]), ("odd", [24, 96])] {
            for format in [Format::Nf4, Format::Fp4] {
                for block_size in [64, 128] {
                    let name = format!("{name}_{}_{block_size}", format.name());
                    let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
                    let config = QuantConfig::new(format).block_size(block_size);
                    all.push(Self { name, shape, config, bytes });
                }
            }
        }
        all
    }

    pub fn u8(&self, tensor: &str) -> Vec<u8> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(tensor).unwrap().data().to_vec()
    }

    pub fn f32(&self, tensor: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.u8(tensor))
    }
}

/// How many floats lie between two, plus one; 0 for equal ones.
pub fn ulps(a: f32, b: f32) -> u32 {
    if a == b { 0 } else { (a.to_bits() as i32).abs_diff(b.to_bits() as i32) }
}
