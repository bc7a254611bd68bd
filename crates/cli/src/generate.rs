//! `burn-lora generate`.

use crate::{
    answer::{Question, answer},
    options::{ModelOptions, SamplingOptions},
};
use burn_lora::prelude::{AdaptableExt, Message};
use clap::Args;
use std::{
    error::Error,
    io::{self, Write},
    time::Instant,
};

/// Answers a question with a model, or continues a text.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,
    /// The question, or the text to continue
    prompt: String,
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
    let device = arguments.model.device()?;
    let start = Instant::now();
    let (tokenizer, model) = arguments.model.load(&device)?;
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), model.summary().bytes());
    eprintln!("{device:?}: {:.1} MB in {seconds:.1} s\n", bytes as f64 / 1e6);

    let message = [Message::user(&arguments.prompt)];
    let question = match arguments.text {
        true => Question::Text(&arguments.prompt),
        false => Question::Chat(&message),
    };
    let mut out = Timed { out, first: None };
    let found = answer(&model, &tokenizer, question, &config, &mut out)?;
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
