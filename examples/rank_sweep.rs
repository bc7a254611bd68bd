//! Sweep over the rank of an adapter: larger ones until the validation loss hardly falls.
//!
//! ```sh
//! cargo run --release --example rank_sweep                     # on the quickstart's model and data
//! cargo run --release --example rank_sweep -- --model MODEL --data chats.jsonl --ranks 8,16,32
//! ```
//!
//! Another setting can be varied in place of the rank, by giving it several values:
//!
//! ```sh
//! cargo run --release --example rank_sweep -- --rate 1e-4,2e-4,5e-4
//! cargo run --release --example rank_sweep -- --targets q_proj,v_proj --targets all-linear
//! ```

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;
#[path = "support/sweep.rs"]
mod sweep;
#[path = "support/table.rs"]
mod table;

use burn_lora::{prelude::*, train::schedule::LearningRate};
use clap::Parser;
use place::Place;
use std::{error::Error, path::PathBuf, process::ExitCode};
use sweep::{Outcome, save, tables};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/quickstart");

/// Trains an adapter at one rank after the other until the validation loss hardly falls. Options
/// that take lists (1,2,3) can be varied in place of the rank, one at a time.
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
    /// Alpha as a multiple of the rank
    #[arg(long, default_value_t = 2.0)]
    alpha_ratio: f64,
    /// List of alphas, in place of the ratio
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
    schedule: Vec<String>,
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
    let mut arguments = Arguments::parse();
    arguments.fill_in();
    let (varied, labels) = arguments.varied()?;
    let runs = 0..labels.len();

    // The settings of all runs first: a mistake in the last should not show after hours.
    let configs = runs.clone().map(|run| arguments.training(run)).collect::<Result<Vec<_>, _>>()?;
    let device = arguments.device.device()?;
    let source = arguments.model.clone().unwrap_or_else(|| PathBuf::from(QUICKSTART).join("model"));
    let tokenizer = Tokenizer::from_pretrained(&source)?;
    let mut loader = Llama::from_pretrained(&source).progress(true);
    if !arguments.dense {
        loader = loader.quantize(QuantConfig::nf4().double_quant(true));
    }
    let base = loader.load(&device)?;
    let loras = runs.map(|run| arguments.lora(run, &base)).collect::<Result<Vec<_>, _>>()?;

    let data = Dataset::from_files(&arguments.data).max_length(arguments.max_length);
    let data = data.load(&tokenizer)?.take(arguments.limit.unwrap_or(usize::MAX));
    let (train, valid) = data.split(arguments.valid_split, arguments.seed);
    println!("{}\n{} of them to validate on; {device:?}", data.report(), valid.len());

    let mut outcomes: Vec<Outcome> = vec![];
    for (label, (lora, config)) in labels.iter().zip(loras.iter().zip(configs)) {
        println!("\n{varied} {label}");
        // The weights are shared, not copied.
        let mut model = base.clone().with_adapter(lora)?;
        let parameters = model.summary().trainable;
        let progress = Progress::new().lines(10);
        let report =
            Trainer::new(config).observe(progress).fit(&mut model, &train, Some(&valid))?;
        let outcome = Outcome::new(label, lora.rank(), parameters, &report);
        let loss = outcome.best().1.validation;
        println!("validation loss {loss:.4}, {:.0} s", outcome.seconds);
        let gain = outcomes.last().map(|before| outcome.gain(before));
        outcomes.push(outcome);
        // Saved after each run: the results so far stay if the rest has to be stopped.
        save(varied, &outcomes, &arguments.out)?;
        if varied == "rank" && !arguments.all && gain.is_some_and(|gain| gain < arguments.gain) {
            break;
        }
    }
    println!("\n{}\n{}", tables(varied, &outcomes), advice(varied, &outcomes, arguments.gain));
    println!("Tables and pictures are in {}.", arguments.out.display());
    Ok(())
}

impl Arguments {
    /// Sets the defaults that depend on other options.
    fn fill_in(&mut self) {
        if self.data.is_empty() {
            self.data = vec![PathBuf::from(QUICKSTART).join("train.jsonl")];
        }
        if self.rate.is_empty() {
            self.rate = vec![if self.model.is_none() { 2e-3 } else { 2e-4 }];
        }
        if self.ranks.is_empty() {
            let ranks = self.lists().iter().all(|(_, values)| values.len() < 2);
            self.ranks = if ranks { vec![8, 16, 32, 64] } else { vec![16] };
        }
    }

    /// Options that can be varied, with their values.
    fn lists(&self) -> [(&'static str, Vec<String>); 9] {
        [
            ("rank", texts(&self.ranks)),
            ("alpha", texts(&self.alpha)),
            ("targets", self.targets.clone()),
            ("dropout", texts(&self.dropout)),
            ("rate", self.rate.iter().map(|rate| format!("{rate:e}")).collect()),
            ("schedule", self.schedule.clone()),
            ("batch", texts(&self.batch)),
            ("micro-batch", texts(&self.micro_batch)),
            ("packing", texts(&self.packing)),
        ]
    }

    /// The option that has several values; the rank if none has.
    fn varied(&self) -> Result<(&'static str, Vec<String>), String> {
        let mut lists = self.lists().to_vec();
        let rank = lists[0].clone();
        lists.retain(|(_, values)| values.len() > 1);
        match &lists[..] {
            [] => Ok(rank),
            [one] => Ok(one.clone()),
            [(one, _), (other, _), ..] => Err(format!(
                "{one} and {other} both have several values: vary one thing at a time, to know \
                 what it was (`--ranks 16` holds the rank)"
            )),
        }
    }

    /// Adapter settings of a run.
    fn lora(&self, run: usize, base: &Llama) -> Result<LoraConfig, AdapterError> {
        let of_rank = |rank: usize| {
            let alpha = pick(&self.alpha, run).unwrap_or(self.alpha_ratio * rank as f64);
            let lora = LoraConfig::new(rank, alpha).seed(self.seed);
            let lora = lora.dropout(pick(&self.dropout, run).unwrap_or(0.0));
            match pick(&self.targets, run).as_deref() {
                None | Some("all-linear") => lora.all_linear(),
                Some(names) => lora.targets(names.split(',')),
            }
        };
        // Parameters are proportional to the rank.
        let smallest = base.clone().with_adapter(&of_rank(1))?.summary().trainable;
        let fitting = |wanted| (wanted as f64 / smallest as f64).round().max(1.0) as usize;
        let rank = self.parameters.map(fitting).or(pick(&self.ranks, run));
        let lora = of_rank(rank.unwrap_or(16));
        lora.validate()?;
        Ok(lora)
    }

    /// Training settings of a run.
    fn training(&self, run: usize) -> Result<TrainConfig, Box<dyn Error>> {
        let rate = pick(&self.rate, run).unwrap_or(2e-4);
        let schedule: Schedule = pick(&self.schedule, run).unwrap_or_default().parse()?;
        let warmup = Warmup::Ratio(self.warmup);
        LearningRate::new(schedule, warmup, rate, 1000)?;
        let batch = pick(&self.batch, run).unwrap_or(16);
        let rows = pick(&self.micro_batch, run).unwrap_or(batch);
        if rows == 0 || !batch.is_multiple_of(rows) {
            let wrong = format!("--batch {batch} cannot be divided into micro-batches of {rows}");
            return Err(wrong.into());
        }
        let config = TrainConfig::new(rate)
            .epochs(self.epochs as f64)
            .batches(BatchConfig {
                size: rows,
                packing: pick(&self.packing, run).filter(|tokens| *tokens > 0),
                ..BatchConfig::default()
            })
            .gradient_accumulation_steps(batch / rows)
            .schedule(schedule)
            .warmup(warmup)
            .evaluate(Every::Epochs(1))
            .seed(self.seed);
        config.validate()?;
        Ok(config)
    }
}

/// Value of a run: its own, or the last.
fn pick<T: Clone>(values: &[T], run: usize) -> Option<T> {
    values.get(run).or(values.last()).cloned()
}

fn texts(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// Recommendation by the outcomes.
fn advice(varied: &str, outcomes: &[Outcome], enough: f64) -> String {
    if varied != "rank" {
        let lowest =
            outcomes.iter().min_by(|a, b| a.best().1.validation.total_cmp(&b.best().1.validation));
        return lowest
            .map_or_else(String::new, |it| format!("{varied} {} has the lowest loss.", it.label));
    }
    if outcomes.len() < 2 {
        return "Give several ranks to compare.".into();
    }
    let last = outcomes.windows(2).find(|pair| pair[1].gain(&pair[0]) < enough);
    match last {
        Some([rank, next]) => format!(
            "Rank {} is enough: {} changes the validation loss by {:+.1} %.",
            rank.label,
            next.label,
            -100.0 * next.gain(rank),
        ),
        _ => "The loss fell at each rank: a larger one may be better still.".into(),
    }
}
