//! Quantization of a weight to 4 bits: size, error, and the error of the product that a layer
//! computes.
//!
//! `cargo run --example quantize` runs on the CPU; with `--features cuda` (or `vulkan`,
//! `wgpu`) and `BURN_DEVICE` on a GPU.

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;

use burn::tensor::{Distribution, FloatDType, Tensor};
use burn_lora::prelude::*;
use place::Place;
use std::{error::Error, process::ExitCode};

fn main() -> ExitCode {
    program::run(quantize)
}

fn quantize() -> Result<(), Box<dyn Error>> {
    let device = Place::default().device()?;
    device.seed(42);
    let [out, width] = [1024, 1024];
    let dense = Tensor::<2>::random([out, width], Distribution::Normal(0.0, 1.0), &device);
    let x = Tensor::<2>::random([64, width], Distribution::Normal(0.0, 1.0), &device);
    let y = Gemm::new().trans_rhs().run(x.clone(), dense.clone());
    println!(
        "a weight [{out}, {width}] from N(0, 1) on {device:?}: {} KiB in float32\n",
        out * width / 256
    );

    println!(
        "{:<10} {:>6} {:>10} {:>9} {:>12} {:>14}",
        "format", "block", "bits", "KiB", "mean |error|", "error of x·W^T"
    );
    for config in [
        QuantConfig::nf4(),
        QuantConfig::nf4().double_quant(true),
        QuantConfig::nf4().block_size(128).double_quant(true),
        QuantConfig::fp4().double_quant(true),
        QuantConfig::mxfp4(),
        QuantConfig::nvfp4(),
    ] {
        let weight = PackedWeight::quantize(dense.clone(), &config)?;
        let error = mean_abs(weight.dequantize(FloatDType::F32) - dense.clone());
        let product = weight.matmul(x.clone());
        let product = mean_abs(product - y.clone()) / mean_abs(y.clone());
        println!(
            "{:<10} {:>6} {:>10.3} {:>9.1} {:>12.4} {:>13.1}%",
            format!(
                "{}{}",
                config.format().name(),
                if config.is_double_quant() { "+dq" } else { "" }
            ),
            weight.layout().block_size,
            config.bits_per_weight(),
            weight.bytes() as f64 / 1024.0,
            error,
            product * 100.0,
        );
    }

    // The gradient of x comes from the codes; the weight has none.
    let weight = PackedWeight::quantize(dense, &QuantConfig::nf4().double_quant(true))?;
    let x = x.autodiff().require_grad();
    let grads = weight.matmul(x.clone()).powi_scalar(2).mean().backward();
    let dx = x.grad(&grads).expect("x requires a gradient");
    println!("\nmean |d loss / d x| through the packed weight: {:.4}", mean_abs(dx));
    Ok(())
}

fn mean_abs(tensor: Tensor<2>) -> f32 {
    tensor.abs().mean().into_scalar()
}
