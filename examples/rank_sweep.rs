//! Sweep over the rank of an adapter: larger ones until the validation loss hardly falls. The library's `Sweep`,
//! which the program `burn-lora sweep` has for any setting, in a few lines.
//!
//! ```sh
//! cargo run --release --example rank_sweep                     # on the quickstart's model and data
//! cargo run --release --example rank_sweep -- --model MODEL --data chats.jsonl --ranks 8,16,32
//! ```
//!
//! Other settings can be varied in place of the rank, or with it, by giving them several values:
//!
//! ```sh
//! cargo run --release --example rank_sweep -- --rate 1e-4,2e-4,5e-4
//! cargo run --release --example rank_sweep -- --targets q_proj,v_proj --targets all-linear
//! ```
//!
//! The same command again goes on where it was stopped.

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;

use burn_lora::{
    prelude::*,
    train::sweep::{Axis, SweepProgress},
};
use clap::Parser;
use place::Place;
use serde::Serialize;
use serde_json::{Value, json};
use std::{error::Error, path::PathBuf, process::ExitCode};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/quickstart");

/// Trains an adapter at one rank after the other until the validation loss hardly falls. Options
/// that take lists (1,2,3) can be varied in place of the rank, or with it.
#[derive(Parser)]
struct Arguments {
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`) [default: the
    /// quickstart's]
    #[arg(long, requires = "data")]
    model: Option<PathBuf>,
    /// A file of examples (.jsonl, .json, .csv, .parquet); may be repeated [default: the
    /// quickstart's]
    #[arg(long)]
    data: Vec<PathBuf>,
    /// Maximum number of tokens per example
    #[arg(long, default_value_t = 1024)]
    max_length: usize,
    /// Maximum number of examples [default: all]
    #[arg(long)]
    limit: Option<usize>,
    /// Fraction of the examples to validate on
    #[arg(long, default_value_t = 0.1)]
    valid_split: f64,

    /// List of ranks [default: 8,16,32,64, or 16 if another option has several values]
    #[arg(long, alias = "rank", value_delimiter = ',', conflicts_with = "parameters")]
    ranks: Vec<usize>,
    /// Choose the rank for about this many trainable parameters
    #[arg(long)]
    parameters: Option<usize>,
    /// Fraction by which the validation loss has to fall for the next rank to be tried
    #[arg(long, default_value_t = 0.01)]
    gain: f64,
    /// Try all ranks, whatever the gain
    #[arg(long)]
    all: bool,
    /// Alpha as a multiple of the rank, in place of the same for all
    #[arg(long)]
    alpha_ratio: Option<f64>,
    /// List of alphas [default: 32, for all ranks]
    #[arg(long, value_delimiter = ',', conflicts_with = "alpha_ratio")]
    alpha: Vec<f64>,
    /// Layers to adapt: all-linear, or names such as q_proj,v_proj; repeat it to compare
    #[arg(long, default_value = "all-linear")]
    targets: Vec<String>,
    /// List of dropout probabilities of the adapter's input
    #[arg(long, value_delimiter = ',', default_value = "0")]
    dropout: Vec<f64>,

    /// Passes over the data
    #[arg(long, default_value_t = 2)]
    epochs: usize,
    /// List of peak learning rates [default: 2e-4; 2e-3 for the quickstart's model, which is small]
    #[arg(long, value_delimiter = ',')]
    rate: Vec<f64>,
    /// List of schedules: linear, cosine, constant_with_warmup, ..
    #[arg(long, value_delimiter = ',', default_value = "cosine")]
    schedule: Vec<Schedule>,
    /// Fraction of the steps in which the learning rate warms up
    #[arg(long, default_value_t = 0.03)]
    warmup: f64,
    /// List of rows per step: examples, or packed rows
    #[arg(long, value_delimiter = ',', default_value = "16")]
    batch: Vec<usize>,
    /// List of rows per micro-batch [default: all of a step]
    #[arg(long, value_delimiter = ',')]
    micro_batch: Vec<usize>,
    /// List of tokens per packed row, which holds several examples; 0 for one example per row
    #[arg(long, value_delimiter = ',', default_value = "0")]
    packing: Vec<usize>,

    /// Leave the linear layers as they are, in place of 4 bits (NF4, double quantization)
    #[arg(long)]
    dense: bool,
    /// auto, cuda, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
    /// Folder for tables and plots
    #[arg(long, default_value = "sweep")]
    out: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

fn main() -> ExitCode {
    program::run(sweep_ranks)
}

fn sweep_ranks() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let sweep = arguments.sweep()?;
    let report = sweep.run(&mut SweepProgress::new().lines(10), &Interrupt::on_ctrl_c()?)?;
    println!("\n{report}\nTables and pictures are in {}.", arguments.out.display());
    Ok(())
}

impl Arguments {
    /// The run that all trials are variants of.
    fn run(&self) -> Result<RunConfig, TrainError> {
        let quickstart = PathBuf::from(QUICKSTART);
        let mut run = RunConfig { devices: vec![self.device], ..RunConfig::default() };
        run.model.path = Some(self.model.clone().unwrap_or_else(|| quickstart.join("model")));
        if self.dense {
            run.model.format = WeightFormat::None;
        }
        run.adapter = run.adapter.seed(self.seed);
        run.data = DataConfig {
            files: match self.data.as_slice() {
                [] => vec![quickstart.join("train.jsonl")],
                files => files.to_vec(),
            },
            limit: self.limit.unwrap_or(0),
            max_length: self.max_length,
            valid_split: self.valid_split,
            split_seed: self.seed,
            ..run.data
        };
        run.train = run.train.epochs(self.epochs as f64).warmup(Warmup::Ratio(self.warmup));
        // Of each run its best epoch counts.
        run.train = run.train.load_best_at_end(true).seed(self.seed).output(&self.out);
        run.train.save = None;
        Ok(run)
    }

    /// The run, and what varies: the ranks last.
    fn sweep(&self) -> Result<Sweep, Box<dyn Error>> {
        let rates = match self.rate.as_slice() {
            [] => vec![if self.model.is_none() { 2e-3 } else { 2e-4 }],
            rates => rates.to_vec(),
        };
        let mut rows = vec![];
        for number in 0..self.batch.len().max(self.micro_batch.len()) {
            let batch = pick(&self.batch, number).unwrap_or(16);
            let micro = pick(&self.micro_batch, number).unwrap_or(batch);
            if micro == 0 || !batch.is_multiple_of(micro) {
                let wrong =
                    format!("--batch {batch} cannot be divided into micro-batches of {micro}");
                return Err(wrong.into());
            }
            rows.push((micro, batch / micro));
        }
        let size = rows.iter().map(|rows| json!(rows.0)).collect();
        let steps = rows.iter().map(|rows| json!(rows.1)).collect();
        let mut sweep = Sweep::new(self.run()?);
        sweep = vary(sweep, &[("adapter.lora_dropout", values(&self.dropout))])?;
        sweep = vary(sweep, &[("train.learning_rate", values(&rates))])?;
        sweep = vary(sweep, &[("train.schedule", values(&self.schedule))])?;
        let names = ["train.batches.size", "train.gradient_accumulation_steps"];
        sweep = vary(sweep, &[(names[0], size), (names[1], steps)])?;
        sweep = vary(sweep, &[("train.batches.packing", values(&self.packing))])?;
        let others = sweep.over.len() + self.alpha.len().max(1) + self.targets.len() - 2;
        let ranks = match self.ranks.as_slice() {
            [] if others > 0 || self.parameters.is_some() => vec![16],
            [] => vec![8, 16, 32, 64],
            ranks => ranks.to_vec(),
        };
        let [mut r, mut alphas, mut targets] = [(); 3].map(|()| vec![]);
        for number in 0..ranks.len().max(self.alpha.len()).max(self.targets.len()) {
            let layers = pick(&self.targets, number).unwrap_or_default();
            targets.push(match layers.as_str() {
                "all-linear" => json!(layers),
                names => json!(names.split(',').collect::<Vec<_>>()),
            });
            let rank = match self.parameters {
                None => pick(&ranks, number).unwrap_or(16),
                Some(wanted) => {
                    // Parameters are proportional to the rank.
                    let one = sweep.run.with("adapter.r", 1)?;
                    let one = one.with("adapter.target_modules", &targets[number])?;
                    let smallest = one.load_model(&self.device.device()?)?.summary().trainable;
                    (wanted as f64 / smallest as f64).round().max(1.0) as usize
                }
            };
            r.push(json!(rank));
            let of_rank = self.alpha_ratio.map(|ratio| ratio * rank as f64);
            alphas.push(json!(pick(&self.alpha, number).or(of_rank).unwrap_or(32.0)));
        }
        let names = ["adapter.r", "adapter.lora_alpha", "adapter.target_modules"];
        sweep = vary(sweep, &[(names[0], r), (names[1], alphas), (names[2], targets)])?;
        let gain = ranks.len() > 1 && !self.all;
        Ok(if gain { sweep.min_gain(self.gain) } else { sweep })
    }
}

/// Adds settings with their values: an axis of those that vary, the others to the run.
fn vary(mut sweep: Sweep, settings: &[(&str, Vec<Value>)]) -> Result<Sweep, TrainError> {
    let is_same = |values: &[Value]| values.iter().all(|value| *value == values[0]);
    for (name, values) in settings.iter().filter(|setting| is_same(&setting.1)) {
        sweep.run = sweep.run.with(name, &values[0])?;
    }
    let varied: Vec<_> = settings.iter().filter(|setting| !is_same(&setting.1)).collect();
    let Some((_, first)) = varied.first() else { return Ok(sweep) };
    let point = |number| varied.iter().map(|setting| &setting.1[number]).collect::<Vec<_>>();
    let points: Vec<_> = (0..first.len()).map(point).collect();
    Ok(sweep.over(Axis::together(varied.iter().map(|setting| setting.0), points)?))
}

fn values<T: Serialize>(list: &[T]) -> Vec<Value> {
    list.iter().map(|value| json!(value)).collect()
}

/// Value of a number: its own, or the last.
fn pick<T: Clone>(values: &[T], number: usize) -> Option<T> {
    values.get(number).or(values.last()).cloned()
}
