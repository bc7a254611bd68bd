//! `burn-lora chat`.

use crate::{
    answer::{Question, answer},
    options::{ModelOptions, SamplingOptions},
    program,
};
use burn_lora::prelude::*;
use clap::Args;
use std::{
    error::Error,
    io::{BufRead, Write},
};

const HELP: &str = "\
/base          with the adapter, or without it: answers of the model alone
/reset         forget the chat so far
/system TEXT   begin again with these instructions
/help          this
/quit          the end (or Ctrl-D)";

/// Chats with a model, with and without its adapter.
///
/// Each line is a turn; lines that begin with / are commands (/help). Lines are also read from a pipe. A model without a chat template, such as a base model,
/// continues each line as a text of its own.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,
    /// System message with instructions, at the beginning of the chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Continue each line as it is, without the chat template
    #[arg(long, conflicts_with = "system")]
    text: bool,
    #[command(flatten)]
    sampling: SamplingOptions,
}

impl Arguments {
    fn generation(&self, turn: u64) -> GenerateConfig {
        self.sampling.config(turn, (512, 0.7, 0.9))
    }
}

/// Runs the chat. `typed` is `true` if a person waits for a prompt.
pub fn chat(
    arguments: &Arguments,
    input: impl BufRead,
    output: &mut impl Write,
    typed: bool,
) -> Result<(), Box<dyn Error>> {
    if program::is_json() {
        return Err("a chat is for people: `burn-lora generate --json` is for scripts".into());
    }
    arguments.generation(0).validate()?;
    let (tokenizer, mut model) = arguments.model.load(&arguments.model.base.device()?)?;

    let plain = arguments.text || tokenizer.chat_template().is_none();
    if plain && arguments.system.is_some() {
        return Err("--system needs a chat template, which this model does not have".into());
    }
    if typed {
        let way = if plain { "It goes on with each line. " } else { "" };
        eprintln!("{}: {way}/help lists commands.", arguments.model.base.model.display());
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
