//! Memory estimate of a training run, before anything is downloaded: from `config.json` alone.
//!
//! ```sh
//! cargo run --release --example memory_plan                          # Llama 3.1 8B, QLoRA
//! cargo run --release --example memory_plan -- models/Qwen3-4B --rank 32 --batch 4 --memory 24
//! ```

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/precision.rs"]
mod precision;
#[path = "support/weights.rs"]
mod weights;

use burn_lora::prelude::*;
use clap::{Parser, ValueEnum};
use precision::Precision;
use std::{error::Error, path::PathBuf, process::ExitCode};
use weights::WeightFormat;

/// `config.json` of Llama 3.1 8B.
const LLAMA_3_1_8B: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "rope_theta": 500000.0
}"#;

/// Estimates the memory of a training run on a GPU, by parts, and how many rows or tokens fit.
#[derive(Parser)]
struct Arguments {
    /// A model's folder, or its config.json; Llama 3.1 8B's if left out
    model: Option<PathBuf>,
    /// Storage format of the linear layers
    #[arg(long, value_enum, default_value = "nf4")]
    format: WeightFormat,
    /// Dtype of the computation, and of what is not packed
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Precision,
    /// Leave the embeddings in host memory
    #[arg(long)]
    host_embeddings: bool,
    /// Rank of the adapter
    #[arg(long, default_value_t = 16, value_parser = number(1 << 16))]
    rank: usize,
    /// Layers to adapt, separated by commas; all linear ones if left out
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Rows per micro-batch
    #[arg(long, default_value_t = 1, value_parser = number(1 << 16))]
    batch: usize,
    /// Micro-batches per optimizer step
    #[arg(long, default_value_t = 1, value_parser = number(1 << 16))]
    accumulate: usize,
    /// Tokens of the longest row
    #[arg(long, default_value_t = 2048, value_parser = number(1 << 24))]
    length: usize,
    /// Recomputation in the backward pass: none, layer, or a number of layers
    #[arg(long, default_value = "layer", value_parser = recompute)]
    recompute: Recompute,
    /// Offload the inputs of the layers to host memory
    #[arg(long)]
    offload: bool,
    /// The optimizer
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: OptimizerName,
    /// Tokens whose logits are computed at a time
    #[arg(long, value_parser = number(1 << 24))]
    loss_chunk: Option<usize>,
    /// Memory of the GPU in GiB; several sizes if left out
    #[arg(long, value_parser = gib)]
    memory: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerName {
    Adamw,
    Adamw8bit,
    Lion,
    Sgd,
}

fn main() -> ExitCode {
    program::run(|| plan(&Arguments::parse()))
}

fn plan(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
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
        .optimizer(match arguments.optimizer {
            OptimizerName::Adamw => OptimizerConfig::adamw(),
            OptimizerName::Adamw8bit => OptimizerConfig::adamw_8bit(),
            OptimizerName::Lion => OptimizerConfig::Lion { beta1: 0.9, beta2: 0.99 },
            OptimizerName::Sgd => OptimizerConfig::Sgd { momentum: 0.0 },
        });
    train.loss_chunk = arguments.loss_chunk;
    train.validate()?;

    let mut plan = MemoryPlan::new(&config)
        .dtype(arguments.dtype.into())
        .host_embeddings(arguments.host_embeddings)
        .adapter(&lora)?
        .train(&train)
        .length(arguments.length);
    if let Some(config) = arguments.format.quantize() {
        plan = plan.quantize(config);
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

/// Parser of a number from 1 to `most`.
fn number(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync {
    move |text| match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("it is a number from 1 to {most}")),
    }
}

fn gib(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(size) if (0.0..1e6).contains(&size) => Ok(size),
        _ => Err("it is a number of GiB".into()),
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
