//! Burn's own QLoRA (`Module::apply_qlora`) next to this library's, on the same model and data:
//! memory and time per step.
//!
//! ```sh
//! cargo run --release --example compare_builtin
//! ```
//!
//! Each side runs in a process of its own, so that it has its own peak.

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;

use burn::{
    module::{Lora, ParamGroup, QLora, Quantizer},
    tensor::quantization::{Calibration, QuantValue, ScaleDtype},
};
use burn_lora::prelude::*;
use burn_lora::train::{data::Sample, watch::Started};
use clap::{Parser, ValueEnum};
use place::Place;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    error::Error,
    fs,
    process::{Command, ExitCode},
};

/// Trains a Llama with random weights in 4 bits twice: with Burn's own adapters, and with those of
/// this library. BURN_DEVICE chooses the device (cuda, vulkan, flex, ...).
///
/// The same for both: model, tokens, targets, rank, trainer, optimizer, and no recomputation in the
/// backward pass.
/// Not the same: the 4 bits (integers in blocks of 64 there, NF4 with double quantization here),
/// and A's initial values, so that losses differ a little.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Width of the model: a multiple of 128
    #[arg(long, default_value_t = 512)]
    hidden: usize,
    /// Width inside the MLP
    #[arg(long, default_value_t = 1408)]
    inner: usize,
    /// Number of layers
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Rows per batch
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Tokens per row
    #[arg(long, default_value_t = 64)]
    length: usize,
    /// Rank of the adapters
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Number of steps; the first does not count
    #[arg(long, default_value_t = 4)]
    steps: usize,
    /// Run one side in this process, and print its measurements as JSON
    #[arg(long, hide = true)]
    side: Option<Side>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    Burn,
    Ours,
}

/// Measurements of one side.
#[derive(Serialize, Deserialize)]
struct Measured {
    /// Number of trainable parameters.
    trained: usize,
    /// Bytes of the process, or of the GPU's pool, before the first step.
    loaded: u64,
    /// Peak of these bytes.
    peak: u64,
    /// Median time per step.
    milliseconds: f64,
    loss: f64,
}

fn main() -> ExitCode {
    program::run(|| compare(Arguments::parse()))
}

fn compare(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    if let Some(side) = arguments.side {
        println!("{}", serde_json::to_string(&measure(&arguments, side)?)?);
        return Ok(());
    }
    let Arguments { hidden, inner, layers, rows, length, rank, .. } = arguments;
    if hidden == 0 || hidden % 128 != 0 {
        return Err(format!("--hidden {hidden}: it has to be a multiple of 128").into());
    }
    let device = Place::default().device()?;
    let memory =
        if device.memory_pool_usage().is_some() { "the GPU's pool" } else { "the process" };
    println!(
        "{layers} layers [{hidden}, {inner}] in 4 bits, rank {rank} on all linear layers, {rows} x \
         {length} tokens,\nAdamW, {device:?}; memory of {memory}\n"
    );
    println!(
        "{:<24} {:>10} {:>12} {:>12} {:>12} {:>10} {:>8}",
        "", "trained", "loaded MiB", "peak MiB", "steps added", "ms/step", "loss"
    );
    for (name, side) in [("Burn's apply_qlora", "burn"), ("burn-lora", "ours")] {
        let output = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .args(["--side", side])
            .output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{name}: {}\n{error}", output.status).into());
        }
        let measured: Measured = serde_json::from_slice(&output.stdout)?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "{name:<24} {:>10} {:>12.1} {:>12.1} {:>12.1} {:>10.1} {:>8.4}",
            measured.trained,
            mib(measured.loaded),
            mib(measured.peak),
            mib(measured.peak.saturating_sub(measured.loaded)),
            measured.milliseconds,
            measured.loss,
        );
    }
    println!(
        "\nComparable: what the steps add, and their time. What is loaded is as large as the formats make it,\n\
         and losses differ as --help says. Burn makes each weight dense, adds A · B to it and keeps the sum\n\
         for the backward pass, whose gradient is of the weight's size; here neither is made."
    );
    Ok(())
}

fn measure(arguments: &Arguments, side: Side) -> Result<Measured, Box<dyn Error>> {
    let device = Place::default().device()?;
    device.seed(0);
    let Arguments { hidden, inner, layers, rows, length, rank, steps, .. } = *arguments;
    let vocabulary = 1024;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden / 64,
        "num_key_value_heads": hidden / 128,
        "head_dim": 64,
    });
    let config = LlamaConfig::from_json(&config.to_string())?;
    let mut model = Llama::random(&config, 0, &device);
    match side {
        Side::Burn => {
            let linear = || ParamGroup::from_predicate("_proj");
            let scheme = device.settings().quantization.scheme.with_value(QuantValue::Q4S);
            let scheme = scheme.per_block([64], ScaleDtype::F32);
            let mut quantizer = Quantizer::new(Calibration::MinMax, scheme);
            quantizer.set_param_group(linear());
            let lora = Lora::new(rank, 2.0 * rank as f64).set_dtype(FloatDType::F32);
            model = model.apply_qlora(QLora::new(lora.set_param_group(linear()), quantizer));
        }
        Side::Ours => {
            model.quantize_base(&QuantConfig::nf4().double_quant(true))?;
            model = model.with_adapter(&LoraConfig::new(rank, 2 * rank).all_linear())?;
        }
    }

    let token = |at: usize| ((at * 7919 + at / 13) % vocabulary) as u32;
    let samples = (0..rows * steps).map(|row| Sample {
        ids: (0..length).map(|at| token(row * length + at)).collect(),
        loss_mask: vec![true; length],
    });
    let data = Dataset::from_samples(samples.collect::<Vec<_>>())?;
    let mut train = TrainConfig::new(1e-4).batch_size(rows).recompute(Recompute::None);
    train.log_steps = 1;

    device.sync()?;
    device.memory_cleanup();
    let loaded = memory(&device, Reading::Now)?;
    forget_peak()?;
    let mut trained = 0;
    let report = Trainer::new(train).observe(Count(&mut trained)).fit(&mut model, &data, None)?;
    let peak = memory(&device, Reading::Most)?;

    let mut times: Vec<f64> = report.log.iter().skip(1).map(|line| line.step_seconds).collect();
    times.sort_by(f64::total_cmp);
    let milliseconds = times.get(times.len() / 2).map_or(f64::NAN, |seconds| seconds * 1e3);
    let loss = report.log.last().map_or(f64::NAN, |line| line.loss);
    Ok(Measured { trained, loaded, peak, milliseconds, loss })
}

/// Observer of the number of trainable parameters.
struct Count<'a>(&'a mut usize);

impl Observer for Count<'_> {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        *self.0 = run.trainable_parameters;
        Ok(())
    }
}

enum Reading {
    Now,
    Most,
}

/// Memory of the GPU's pool (which keeps what it has reserved, so that its end is its peak), or of
/// the process, in bytes.
fn memory(device: &Device, reading: Reading) -> Result<u64, Box<dyn Error>> {
    if let Some(usage) = device.memory_pool_usage() {
        return Ok(match reading {
            Reading::Now => usage.bytes_in_use,
            Reading::Most => usage.bytes_reserved,
        });
    }
    let name = match reading {
        Reading::Now => "VmRSS:",
        Reading::Most => "VmHWM:",
    };
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| format!("/proc/self/status: {error}: a CPU is measured on Linux only"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(1024 * kib.ok_or_else(|| format!("/proc/self/status has no {name}"))?)
}

/// Resets the peak of the process: the dense model was there before the packed one.
fn forget_peak() -> Result<(), Box<dyn Error>> {
    let file = "/proc/self/clear_refs";
    fs::write(file, "5")
        .map_err(|error| format!("{file}: {error}: needed to measure a peak").into())
}
