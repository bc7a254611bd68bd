//! A chat with a model, with and without its adapter.
//!
//! ```sh
//! cargo run --release --example chat -- models/Llama-3.2-1B-Instruct --adapter out
//! echo "What is the capital of France?" | cargo run --release --example chat -- MODEL
//! ```

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/answer.rs"]
mod answer;
#[path = "support/place.rs"]
mod place;
#[path = "support/precision.rs"]
mod precision;
#[path = "support/weights.rs"]
mod weights;

use answer::{Question, answer};
use burn_lora::prelude::*;
use clap::Parser;
use place::Place;
use precision::Precision;
use program::Output;
use std::{
    error::Error,
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};
use weights::WeightFormat;

const HELP: &str = "\
/base          with the adapter, or without it: answers of the model alone
/reset         forget the chat so far
/system TEXT   begin again with these instructions
/help          this
/quit          the end (or Ctrl-D)";

/// A chat with a model. Each line is a turn; lines that begin with / are commands (/help).
///
/// Lines are also read from a pipe. A model without a chat template, such as a base model,
/// continues each line as a text of its own.
#[derive(Parser)]
pub struct Arguments {
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    model: PathBuf,
    /// Folder of an adapter in PEFT's format
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// Pack the linear layers in 4 bits: --format nf4
    #[arg(long = "4bit", conflicts_with = "format")]
    four_bit: bool,
    /// Storage format of the linear layers
    #[arg(long, value_enum, default_value = "none")]
    format: WeightFormat,
    /// Dtype of the computation [default: by checkpoint and device]
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    /// System message with instructions, at the beginning of the chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Continue each line as it is, without the chat template
    #[arg(long, conflicts_with = "system")]
    text: bool,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
    /// Maximum number of tokens per answer
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Sample from the fewest tokens whose probabilities sum to this
    #[arg(long, default_value_t = 0.9)]
    top_p: f32,
    /// Sample from this many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the tokens at least this many times as likely as the likeliest
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Repetition penalty: above 1, tokens that are there already become less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// End an answer at this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Arguments {
    /// Generation settings of a turn; each turn has a seed of its own.
    fn generation(&self, turn: u64) -> GenerateConfig {
        let config = GenerateConfig::new(self.max_new_tokens)
            .temperature(self.temperature)
            .top_p(self.top_p)
            .top_k(self.top_k)
            .min_p(self.min_p)
            .repetition_penalty(self.repetition_penalty)
            .seed(self.seed.wrapping_add(turn));
        self.stop.iter().fold(config, |config, text| config.stop(text))
    }
}

fn main() -> ExitCode {
    let (input, arguments) = (io::stdin(), Arguments::parse());
    let typed = input.is_terminal();
    program::run(|| chat(&arguments, input.lock(), &mut Output::new(), typed))
}

/// Runs the chat. `typed` is `true` if a person waits for a prompt.
pub fn chat(
    arguments: &Arguments,
    input: impl BufRead,
    output: &mut impl Write,
    typed: bool,
) -> Result<(), Box<dyn Error>> {
    arguments.generation(0).validate()?;
    let format = if arguments.four_bit { WeightFormat::Nf4 } else { arguments.format };
    let tokenizer = Tokenizer::from_pretrained(&arguments.model)?;
    let mut loader = Llama::from_pretrained(&arguments.model).progress(true);
    if let Some(config) = format.quantize() {
        loader = loader.quantize(config);
    }
    if let Some(dtype) = arguments.dtype {
        loader = loader.dtype(dtype.into());
    }
    let mut model = loader.load(&arguments.device.device()?)?;
    model.check_tokenizer(&tokenizer);
    if let Some(folder) = &arguments.adapter {
        model.load_adapter("default", folder)?;
    }

    let plain = arguments.text || tokenizer.chat_template().is_none();
    if plain && arguments.system.is_some() {
        return Err("--system needs a chat template, which this model does not have".into());
    }
    if typed {
        let way = if plain { "It goes on with each line. " } else { "" };
        eprintln!("{}: {way}/help lists commands.", arguments.model.display());
    }
    let begin = |system: Option<&str>| Vec::from_iter(system.map(Message::system));
    let mut messages = begin(arguments.system.as_deref());
    let (mut turn, mut lines) = (0, input.lines());
    loop {
        if typed {
            eprint!("\n> ");
        }
        let line = lines.next().transpose().map_err(|error| format!("standard input: {error}"))?;
        let Some(line) = line else { return Ok(()) };
        let line = line.trim();
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "" => continue,
            "/quit" | "/exit" => return Ok(()),
            "/help" => eprintln!("{HELP}"),
            "/reset" => {
                messages.retain(|message| message.role() == "system");
                eprintln!("(a new chat)");
            }
            "/system" if plain => eprintln!("(there is no chat template to put them into)"),
            "/system" => {
                messages = begin(Some(rest).filter(|text| !text.is_empty()));
                eprintln!("(a new chat)");
            }
            "/base" => eprintln!("({})", switch(&mut model)?),
            command if command.starts_with('/') && typed => eprintln!("{command}?\n{HELP}"),
            _ => {
                let config = arguments.generation(turn);
                turn += 1;
                if plain {
                    answer(&model, &tokenizer, Question::Text(line), &config, output)?;
                } else {
                    messages.push(Message::user(line));
                    let question = Question::Chat(&messages);
                    let found = answer(&model, &tokenizer, question, &config, output)?;
                    messages.push(Message::assistant(found.text));
                }
                // Nobody may be left to read it.
                if writeln!(output).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Switches the adapter off, or on again.
fn switch(model: &mut Llama) -> Result<&'static str, AdapterError> {
    if model.adapter_names().is_empty() {
        return Ok("there is no adapter");
    }
    let off =
        model.layers().iter().all(|(_, layer)| layer.adapters().selection().names().is_empty());
    model.select(if off { Selection::adapters(["default"]) } else { Selection::base() })?;
    Ok(if off { "with the adapter" } else { "the model alone" })
}
