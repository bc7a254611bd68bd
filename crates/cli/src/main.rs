//! The program `burn-lora`: fine-tunes a model, evaluates it, talks to it, merges its adapter; and says
//! before what files are, and what formats and runs will cost. What it does is the library's.

#[macro_use]
mod program;
mod answer;
mod chat;
mod completions;
mod eval;
mod export;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod info;
mod merge;
mod options;
mod plan;
mod preview;
mod quantize;
mod run_options;
#[cfg(feature = "serve")]
mod serve;
mod sweep;
mod train;

use burn_lora::prelude::Interrupt;
use clap::{CommandFactory, Parser, Subcommand};
use program::Output;
use std::{
    io::{IsTerminal, stdin},
    process::ExitCode,
};

const EXAMPLES: &str = "\
Examples:
  burn-lora info models/Llama-3.2-1B-Instruct
  burn-lora preview --model models/Llama-3.2-1B-Instruct --data chats.jsonl
  burn-lora train --model models/Llama-3.2-1B-Instruct --data chats.jsonl --output out
  burn-lora eval models/Llama-3.2-1B-Instruct --data test.jsonl --adapter base --adapter out
  burn-lora sweep --model models/Llama-3.2-1B-Instruct --data chats.jsonl --valid-split 0.05 \\
      --over train.learning_rate=1e-4,2e-4,5e-4 --output sweep
  burn-lora chat models/Llama-3.2-1B-Instruct --adapter out --format nf4
  burn-lora serve models/Llama-3.2-1B-Instruct --adapter mine=out
  burn-lora merge models/Llama-3.2-1B-Instruct out merged

burn-lora help COMMAND shows the options of a command.";

/// LoRA and QLoRA fine-tuning of language models.
#[derive(Parser)]
#[command(name = "burn-lora", version, after_help = EXAMPLES)]
struct Arguments {
    /// Print the result as JSON on standard output, and all else on standard error
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Info(info::Arguments),
    Preview(Box<preview::Arguments>),
    Train(Box<train::Arguments>),
    Sweep(Box<sweep::Arguments>),
    Eval(Box<eval::Arguments>),
    Generate(generate::Arguments),
    Chat(chat::Arguments),
    #[cfg(feature = "serve")]
    Serve(serve::Arguments),
    Merge(merge::Arguments),
    Export(export::Arguments),
    Quantize(quantize::Arguments),
    Plan(plan::Arguments),
    #[cfg(feature = "hub")]
    Login(hub::LoginArguments),
    #[cfg(feature = "hub")]
    Push(hub::PushArguments),
    Completions(completions::Arguments),
}

fn main() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    burn_lora::kernels::keep_host_memory();
    burn_lora::kernels::compute_here();
    burn_lora::progress::show();
    let Arguments { json, command } = Arguments::parse();
    if json {
        program::json_only();
    }
    match command {
        Command::Info(arguments) => program::run(|| info::info(&arguments).map(done)),
        Command::Preview(arguments) => program::run(|| preview::preview(&arguments).map(done)),
        Command::Train(arguments) => {
            program::run(|| train::train(&arguments, Interrupt::on_ctrl_c))
        }
        Command::Sweep(arguments) => {
            program::run(|| sweep::sweep(&arguments, Interrupt::on_ctrl_c))
        }
        Command::Eval(arguments) => program::run(|| eval::eval(&arguments).map(done)),
        Command::Generate(arguments) => {
            program::run(|| generate::generate(&arguments, &mut Output::new()).map(done))
        }
        Command::Chat(arguments) => {
            let (input, typed) = (stdin(), stdin().is_terminal());
            program::run(|| {
                chat::chat(&arguments, input.lock(), &mut Output::new(), typed).map(done)
            })
        }
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => program::run(|| serve::serve(&arguments).map(done)),
        Command::Merge(arguments) => program::run(|| merge::merge(&arguments).map(done)),
        Command::Export(arguments) => program::run(|| export::export(&arguments).map(done)),
        Command::Quantize(arguments) => program::run(|| quantize::quantize(&arguments).map(done)),
        Command::Plan(arguments) => program::run(|| plan::plan(&arguments).map(done)),
        #[cfg(feature = "hub")]
        Command::Login(arguments) => program::run(|| hub::login(&arguments).map(done)),
        #[cfg(feature = "hub")]
        Command::Push(arguments) => program::run(|| hub::push(&arguments).map(done)),
        Command::Completions(arguments) => program::run(|| {
            let command = self::Arguments::command();
            completions::completions(&arguments, command, &mut Output::new()).map(done)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_lines_are_consistent() {
        Arguments::command().debug_assert();
        for device in ["cuda:x", "gpu", "cpu:1"] {
            let words = ["burn-lora", "train", "--device", device];
            assert!(Arguments::try_parse_from(words).is_err(), "{device}");
        }
    }
}
