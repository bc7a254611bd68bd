//! What memory a training will take, before anything is downloaded: from `config.json` alone.
//!
//! ```sh
//! cargo run --release --example memory_plan                          # Llama 3.1 8B, QLoRA
//! cargo run --release --example memory_plan -- models/Qwen3-4B --rank 32 --batch 4 --memory 24
//! ```

use burn_lora::prelude::*;
use clap::Parser;
use serde_json::json;
use std::{error::Error, path::PathBuf};

/// Llama 3.1 8B.
const LLAMA_3_1_8B: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "rope_theta": 500000.0
}"#;

/// Says what memory a training will take on a GPU, by parts, and how many rows or tokens fit.
#[derive(Parser)]
struct Arguments {
    /// A model's folder, or its config.json; Llama 3.1 8B's if left out
    model: Option<PathBuf>,
    /// How the linear layers are stored: nf4, fp4, mxfp4, nvfp4, or none to leave them dense
    #[arg(long, default_value = "nf4")]
    format: String,
    /// The dtype of all else: bf16, f16, f32
    #[arg(long, default_value = "bf16", value_parser = dtype)]
    dtype: FloatDType,
    /// Leave the embeddings in host memory
    #[arg(long)]
    host_embeddings: bool,
    /// The adapter's rank
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// The layers that it adapts, with commas between them: all linear ones if left out
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Micro-batches of an optimizer step
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// Tokens of the longest row
    #[arg(long, default_value_t = 2048)]
    length: usize,
    /// What is run again in the backward pass: none, layer, or a number of layers
    #[arg(long, default_value = "layer", value_parser = recompute)]
    recompute: Recompute,
    /// Let the inputs of the layers wait in host memory
    #[arg(long)]
    offload: bool,
    /// adamw, adamw8bit, lion, sgd
    #[arg(long, default_value = "adamw", value_parser = optimizer)]
    optimizer: Optimizer,
    /// Tokens that the head takes at a time
    #[arg(long)]
    loss_chunk: Option<usize>,
    /// The GPU's memory in GiB: for several sizes if left out
    #[arg(long)]
    memory: Option<f64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let config = match &arguments.model {
        None => LlamaConfig::from_json(LLAMA_3_1_8B)?,
        Some(path) if path.is_dir() => LlamaConfig::from_file(path.join("config.json"))?,
        Some(path) => LlamaConfig::from_file(path)?,
    };
    let lora = LoraConfig::new(arguments.rank, 2 * arguments.rank);
    let lora = match &arguments.targets[..] {
        [] => lora.all_linear(),
        targets => lora.targets(targets),
    };
    let mut train = TrainConfig::new(2e-4)
        .batch_size(arguments.batch)
        .gradient_accumulation_steps(arguments.accumulate)
        .recompute(arguments.recompute)
        .offload(arguments.offload)
        .optimizer(arguments.optimizer);
    train.loss_chunk = arguments.loss_chunk;
    train.validate()?;

    let mut plan = MemoryPlan::new(&config)
        .dtype(arguments.dtype)
        .host_embeddings(arguments.host_embeddings)
        .adapter(&lora)?
        .train(&train)
        .length(arguments.length);
    if arguments.format != "none" {
        plan = plan.quantize(quantization(&arguments.format)?);
    }
    println!("{plan}\n");

    println!(
        "{:>8}  {:>6}  {:>22}  {:>18}",
        "GPU", "fits", "rows of this length", "tokens in one row"
    );
    let sizes = arguments.memory.map_or(vec![8.0, 16.0, 24.0, 48.0, 80.0], |size| vec![size]);
    for gib in sizes {
        let device = (gib * f64::from(1 << 30)) as u64;
        println!(
            "{:>8}  {:>6}  {:>22}  {:>18}",
            format!("{gib} GiB"),
            if plan.fits(device) { "yes" } else { "no" },
            plan.max_batch(device),
            plan.clone().rows(1).max_length(device),
        );
    }
    Ok(())
}

/// A 4-bit format at its usual settings.
fn quantization(format: &str) -> Result<QuantConfig, Box<dyn Error>> {
    let config: QuantConfig = serde_json::from_value(json!({ "format": format }))
        .map_err(|_| format!("--format {format}: it is nf4, fp4, mxfp4, nvfp4 or none"))?;
    let double = config.double_quant(true);
    // Scales of the others are small already.
    Ok(if double.validate().is_ok() { double } else { config })
}

fn dtype(name: &str) -> Result<FloatDType, String> {
    match name {
        "bf16" => Ok(FloatDType::BF16),
        "f16" => Ok(FloatDType::F16),
        "f32" => Ok(FloatDType::F32),
        _ => Err("it is bf16, f16 or f32".into()),
    }
}

fn recompute(name: &str) -> Result<Recompute, String> {
    match (name, name.parse()) {
        ("none", _) => Ok(Recompute::None),
        ("layer", _) => Ok(Recompute::EveryLayer),
        (_, Ok(layers)) => Ok(Recompute::Every(layers)),
        _ => Err("it is none, layer or a number of layers".into()),
    }
}

fn optimizer(name: &str) -> Result<Optimizer, String> {
    serde_json::from_value(json!({ "name": name }))
        .map_err(|_| "it is adamw, adamw8bit, lion or sgd".into())
}
