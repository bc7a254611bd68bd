//! `burn-lora generate`.

use crate::{
    answer::{Question, answer},
    options::{ModelOptions, SamplingOptions},
    program,
};
use burn_lora::{
    prelude::{
        AdaptableExt, GenerateConfig, GenerateExt, GeneratedText, Llama, LlamaError, Message,
        Tokenizer,
    },
    progress::Work,
};
use clap::Args;
use serde_json::json;
use std::{
    error::Error,
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
    time::Instant,
};

const EXAMPLES: &str = "\
Examples:
  burn-lora generate models/Llama-3.2-1B-Instruct \"What is LoRA?\" --adapter out
  burn-lora generate models/Llama-3.2-1B-Instruct --prompts questions.txt --json > answers.jsonl";

/// Answers questions with a model, or continues texts.
///
/// Several prompts are answered at the same time, and printed in their order. With --json there is a line of JSON for each.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,
    /// Questions, or texts to continue
    #[arg(value_name = "PROMPT", required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// File of further prompts, one a line
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    text: bool,
    #[command(flatten)]
    sampling: SamplingOptions,
}

/// Answers, and says on standard error what it took.
pub fn generate(arguments: &Arguments, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let config = arguments.sampling.config(0, (128, 0.0, 1.0));
    config.validate()?;
    let mut prompts = arguments.prompt.clone();
    if let Some(file) = &arguments.prompts {
        let text = burn_lora_io::read_to_string(file);
        let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
        prompts.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    let device = arguments.model.base.device()?;
    let start = Instant::now();
    let (tokenizer, model) = arguments.model.load(&device)?;
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), model.summary().bytes());
    eprintln!("{device:?}: {:.1} MB in {seconds:.1} s\n", bytes as f64 / 1e6);

    if let [prompt] = &prompts[..] {
        return one(arguments, prompt, &config, &tokenizer, &model, out);
    }
    let (work, start, mut count) = (Work::items("answering", prompts.len()), Instant::now(), 0);
    for (turn, some) in prompts.chunks(TOGETHER).enumerate() {
        let first = turn * TOGETHER;
        let config = arguments.sampling.config(first as u64, (128, 0.0, 1.0)).seed_by_row(true);
        let found = together(arguments, some, &config, &tokenizer, &model, &work)?;
        for (number, (prompt, (found, seconds))) in some.iter().zip(found).enumerate() {
            count += found.tokens.len();
            if program::is_json() {
                document(prompt, &found, seconds);
                continue;
            }
            let separator = if first + number > 0 { "\n\n" } else { "" };
            // Nobody may be left to read it.
            if write!(out, "{separator}{}", found.text).is_err() {
                return Ok(());
            }
        }
    }
    let rate = count as f64 / start.elapsed().as_secs_f64().max(1e-9);
    eprintln!("\n\n{count} tokens of {} answers, {rate:.1} per second", prompts.len());
    Ok(())
}

/// Prompts that are answered before the first answer is printed.
const TOGETHER: usize = 256;

/// Answers several prompts at the same time: each with the seconds until it was there.
fn together(
    arguments: &Arguments,
    prompts: &[String],
    config: &GenerateConfig,
    tokenizer: &Tokenizer,
    model: &Llama,
    work: &Work,
) -> Result<Vec<(GeneratedText, f64)>, LlamaError> {
    let start = Instant::now();
    let mut seconds = vec![0.0; prompts.len()];
    let seen = |row: usize, _: &str| {
        if seconds[row] == 0.0 {
            work.advance(1);
        }
        seconds[row] = start.elapsed().as_secs_f64();
        ControlFlow::Continue(())
    };
    let found = match arguments.text {
        true => model.generate_text(tokenizer, prompts, config, seen),
        false => {
            let chats: Vec<_> = prompts.iter().map(|prompt| [Message::user(prompt)]).collect();
            model.chats(tokenizer, &chats, config, seen)
        }
    };
    Ok(found?.into_iter().zip(seconds).collect())
}

/// Prints an answer as JSON.
fn document(prompt: &str, found: &GeneratedText, seconds: f64) {
    let GeneratedText { text, tokens, stopped } = found;
    program::document(&json!({
        "prompt": prompt,
        "text": text,
        "tokens": tokens.len(),
        "stopped": format!("{stopped:?}").to_lowercase(),
        "seconds": seconds,
    }));
}

/// Answers a prompt.
fn one(
    arguments: &Arguments,
    prompt: &str,
    config: &GenerateConfig,
    tokenizer: &Tokenizer,
    model: &Llama,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let message = [Message::user(prompt)];
    let question = match arguments.text {
        true => Question::Text(prompt),
        false => Question::Chat(&message),
    };
    let start = Instant::now();
    if program::is_json() {
        let found = answer(model, tokenizer, question, config, &mut io::sink())?;
        document(prompt, &found, start.elapsed().as_secs_f64());
        return Ok(());
    }
    let mut out = Timed { out, first: None };
    let found = answer(model, tokenizer, question, config, &mut out)?;
    let seconds = out.first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    let rate = found.tokens.len().saturating_sub(1) as f64 / seconds.max(1e-9);
    eprintln!("\n\n{} tokens, {rate:.1} per second; {:?}", found.tokens.len(), found.stopped);
    Ok(())
}

/// An output that notes when it is first written to.
struct Timed<W> {
    out: W,
    first: Option<Instant>,
}

impl<W: Write> Write for Timed<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.first.get_or_insert_with(Instant::now);
        self.out.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
