//! QLoRA from start to end in two minutes on a CPU: a small Llama learns what diamonds cost.
//!
//! ```sh
//! cargo run --release --example quickstart
//! ```
//!
//! Model and data lie in `testdata/quickstart`, with their sources: nothing is downloaded.

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/diamonds.rs"]
mod diamonds;
#[path = "support/place.rs"]
mod place;

use burn_lora::prelude::*;
use clap::Parser;
use diamonds::{Diamond, Ridge, dollars, error, median};
use place::Place;
use std::{
    error::Error,
    io::{IsTerminal, stdout},
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

/// Fine-tunes a small Llama with 4-bit weights on descriptions of diamonds and their prices.
#[derive(Parser)]
struct Arguments {
    /// Folder of model and data
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/quickstart"))]
    data: PathBuf,
    /// Output folder of the adapter
    #[arg(long, default_value = "quickstart-adapter")]
    out: PathBuf,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
    /// Passes over the data
    #[arg(long, default_value_t = 2.0)]
    epochs: f64,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-3)]
    rate: f64,
    /// Number of held-out diamonds to ask for
    #[arg(long, default_value_t = 200)]
    test: usize,
}

fn main() -> ExitCode {
    program::run(quickstart)
}

fn quickstart() -> Result<(), Box<dyn Error>> {
    let Arguments { data, out, device, epochs, rate, test } = Arguments::parse();
    let start = Instant::now();
    let device = device.device()?;

    // The model: weights in 4 bits, and an adapter at every linear layer.
    let folder = data.join("model");
    let tokenizer = Tokenizer::from_pretrained(&folder)?;
    let load = || {
        let loader = Llama::from_pretrained(&folder);
        loader.quantize(QuantConfig::nf4().double_quant(true)).load(&device)
    };
    let mut model = load()?.with_adapter(&LoraConfig::new(16, 32).all_linear())?;
    println!("{}\n", model.summary());

    // The data: prompts and completions, of which only the completions are trained.
    let examples = Dataset::from_files([data.join("train.jsonl")]).load(&tokenizer)?;
    println!("{} examples; what is trained is marked:", examples.len());
    println!("{}\n", examples.preview(0, &tokenizer, stdout().is_terminal())?);

    let known = Diamond::read(&data.join("train.jsonl"))?;
    let mut unseen = Diamond::read(&data.join("test.jsonl"))?;
    unseen.truncate(test);
    let before = answers(&model, &tokenizer, &unseen)?;

    // The training.
    let config = TrainConfig::new(rate)
        .epochs(epochs)
        .batch_size(32)
        .schedule(Schedule::Cosine)
        .warmup(Warmup::Ratio(0.05));
    Trainer::new(config).observe(Progress::new()).fit(&mut model, &examples, None)?;
    let after = answers(&model, &tokenizer, &unseen)?;

    println!("What {} diamonds cost that it has not seen, mean absolute error:", unseen.len());
    let middle = median(&known);
    let [linear, logarithmic] = [false, true].map(|logarithms| Ridge::fit(&known, logarithms));
    for (name, error) in [
        ("always the median", error(&unseen, |_, _| middle)),
        ("ridge regression of the price", error(&unseen, |_, it| linear.guess(it))),
        ("ridge regression of logarithms", error(&unseen, |_, it| logarithmic.guess(it))),
        ("the model before", error(&unseen, |i, _| dollars(&before[i]))),
        ("the model now", error(&unseen, |i, _| dollars(&after[i]))),
    ] {
        println!("  {name:<32} ${error:>6.0}");
    }
    for (diamond, answer) in unseen.iter().zip(&after).take(3) {
        println!("\n{}{answer} (it is ${})", diamond.prompt, diamond.completion);
    }

    // The adapter alone is what has been learned.
    model.save_adapter("default", &out)?;
    let mut again = load()?;
    again.load_adapter("default", &out)?;
    assert_eq!(answers(&again, &tokenizer, &unseen)?, after);
    println!(
        "\nThe adapter is in {}; loaded into a fresh model it answers the same.",
        out.display()
    );
    println!("All of it took {:.0} s on {device:?}.", start.elapsed().as_secs_f64());
    Ok(())
}

/// Answers of the model, taking the likeliest token each time.
fn answers(
    model: &Llama,
    tokenizer: &Tokenizer,
    diamonds: &[Diamond],
) -> Result<Vec<String>, LlamaError> {
    let prompts: Vec<_> = diamonds.iter().map(|diamond| &diamond.prompt).collect();
    let config = GenerateConfig::new(8);
    let found = model.generate_text(tokenizer, &prompts, &config, |_, _| ControlFlow::Continue(()));
    Ok(found?.into_iter().map(|answer| answer.text).collect())
}
