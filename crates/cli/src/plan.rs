//! `burn-lora plan`.

use crate::{
    options::{self, number},
    program,
};
use burn_lora::prelude::*;
use clap::Args;
use serde_json::json;
use std::{error::Error, fmt::Write, path::PathBuf};

/// `config.json` of Llama 3.1 8B.
const LLAMA_3_1_8B: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "rope_theta": 500000.0
}"#;

/// Estimates the memory of a training run, and how many rows or tokens fit a GPU.
///
/// It takes config.json alone, before anything is downloaded. Without a run file it is QLoRA of rank 16 on all linear layers, in bfloat16, a row of 2,048
/// tokens at a time. Options override the file.
#[derive(Args)]
pub struct Arguments {
    /// A model's folder, or its config.json; Llama 3.1 8B's if left out
    model: Option<PathBuf>,
    /// Run file, as `train` takes it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Storage format of the linear layers
    #[arg(long, value_parser = options::format())]
    format: Option<WeightFormat>,
    /// Dtype of the computation, and of what is not packed [default: bf16]
    #[arg(long, value_parser = options::dtype())]
    dtype: Option<Precision>,
    /// Leave the embeddings in host memory
    #[arg(long)]
    host_embeddings: bool,
    /// Rank of the adapter
    #[arg(long, value_parser = number(1 << 16))]
    rank: Option<usize>,
    /// Layers to adapt, separated by commas; all linear ones if left out
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Rows per micro-batch
    #[arg(long, value_parser = number(1 << 16))]
    batch: Option<usize>,
    /// Micro-batches per optimizer step
    #[arg(long, value_parser = number(1 << 16))]
    accumulate: Option<usize>,
    /// Tokens of the longest row
    #[arg(long, value_parser = number(1 << 24))]
    length: Option<usize>,
    /// Recomputation in the backward pass: none, layer, or a number of layers
    #[arg(long, value_parser = recompute)]
    recompute: Option<Recompute>,
    /// Offload the inputs of the layers to host memory
    #[arg(long)]
    offload: bool,
    /// The optimizer
    #[arg(long, value_parser = ["adamw", "adamw8bit", "lorafa", "lion", "sgd"])]
    optimizer: Option<String>,
    /// Tokens whose logits are computed at a time
    #[arg(long, value_parser = number(1 << 24))]
    loss_chunk: Option<usize>,
    /// Tokens that a layer computes at a time in its feed-forward block
    #[arg(long, value_parser = number(1 << 24))]
    mlp_chunk: Option<usize>,
    /// Memory of the GPU in GiB; several sizes if left out
    #[arg(long, value_parser = gib)]
    memory: Option<f64>,
}

impl Arguments {
    /// The run: defaults or file, and options.
    fn run(&self) -> Result<RunConfig, TrainError> {
        let mut run = match &self.config {
            Some(file) => RunConfig::from_file(file)?,
            None => {
                let mut run = RunConfig::default();
                run.train = run.train.batch_size(1).gradient_accumulation_steps(1);
                run
            }
        };
        if let Some(rank) = self.rank {
            run = run.with("adapter.r", rank)?.with("adapter.lora_alpha", 2 * rank)?;
        }
        if !self.targets.is_empty() {
            run.adapter = run.adapter.targets(&self.targets);
        }
        if let Some(name) = &self.optimizer {
            run = run.with("train.optimizer.name", name)?;
        }
        let RunConfig { model, train, .. } = &mut run;
        model.format = self.format.unwrap_or(model.format);
        model.dtype = self.dtype.or(model.dtype);
        model.host_embeddings |= self.host_embeddings;
        train.batches.size = self.batch.unwrap_or(train.batches.size);
        train.gradient_accumulation_steps =
            self.accumulate.unwrap_or(train.gradient_accumulation_steps);
        train.recompute = self.recompute.unwrap_or(train.recompute);
        train.offload |= self.offload;
        train.loss_chunk = self.loss_chunk.or(train.loss_chunk);
        train.mlp_chunk = self.mlp_chunk.or(train.mlp_chunk);
        if self.length.is_some() {
            train.batches.packing = None;
        }
        train.validate()?;
        Ok(run)
    }
}

/// Prints the plan, and what fits.
pub fn plan(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let config = match &arguments.model {
        None => LlamaConfig::from_json(LLAMA_3_1_8B)?,
        Some(path) if path.is_dir() => LlamaConfig::from_file(path.join("config.json"))?,
        Some(path) => LlamaConfig::from_file(path)?,
    };
    let run = arguments.run()?;
    let longest = arguments.length.unwrap_or(match run.data.max_length {
        0 => config.max_position_embeddings,
        tokens => tokens,
    });
    let plan = run.plan(&config, longest)?;
    let sizes = arguments.memory.map_or(vec![8.0, 16.0, 24.0, 48.0, 80.0], |size| vec![size]);
    let mut text = format!(
        "{plan}\n\n{:>8}  {:>6}  {:>22}  {:>18}",
        "GPU", "fits", "rows of this length", "tokens in one row"
    );
    let mut gpus = vec![];
    for gib in sizes {
        let device = (gib * f64::from(1 << 30)) as u64;
        let fits = plan.fits(device);
        let (rows, tokens) = (plan.max_batch(device), plan.clone().rows(1).max_length(device));
        write!(
            text,
            "\n{:>8}  {:>6}  {rows:>22}  {tokens:>18}",
            format!("{gib} GiB"),
            if fits { "yes" } else { "no" },
        )?;
        gpus.push(json!({ "gib": gib, "fits": fits, "rows": rows, "tokens": tokens }));
    }
    let value = json!({
        "trainable": plan.trainable(),
        "peak": plan.peak(),
        "total": plan.total(),
        "needed": plan.needed(),
        "gpus": gpus,
    });
    program::result(text, &value);
    Ok(())
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
