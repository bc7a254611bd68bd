//! `burn-lora preview`, and how data are shown.

use crate::{
    program,
    run_options::{RunOptions, with_option},
};
use burn_lora::prelude::*;
use clap::Args;
use serde_json::{Value, json};
use std::{error::Error, fmt::Write, ops::Range};

const EXAMPLES: &str = "\
Examples:
  burn-lora preview --model models/Llama-3.2-1B-Instruct --data chats.jsonl
  burn-lora preview --config run.toml --from 100 --examples 5
  burn-lora preview --config run.toml --json | jq .train.truncated";

/// Shows what `train` would train on: counts, what was left out, and examples with the trained tokens marked.
///
/// It takes the options of `train`, and reads the data with the model's tokenizer; no weights are
/// loaded, and nothing is written.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    run: RunOptions,
    /// Number of examples to show
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    examples: usize,
    /// First example to show; 1 is the first of the data
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = crate::options::number(usize::MAX))]
    from: usize,
    /// Show examples to validate on
    #[arg(long)]
    validation: bool,
}

/// Shows the data.
pub fn preview(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut run = arguments.run.run()?;
    // Nothing is written: it may be left out.
    run.train.output.get_or_insert_default();
    run.validate().map_err(with_option)?;
    let mut data = run.load_data()?;
    if arguments.validation {
        let valid = data.valid.take();
        data.train = valid.ok_or("there are no data to validate on: --valid or --valid-split")?;
    }
    let (first, count) = (arguments.from - 1, data.train.report().examples);
    if first >= count {
        return Err(format!("--from {}: there are {count} examples", arguments.from).into());
    }
    let shown = first..count.min(first.saturating_add(arguments.examples));
    let value = json(&data, shown.clone())?;
    program::result(text(&data, shown)?, &value);
    Ok(())
}

/// The data as text: counts, and some of the examples.
pub fn text(data: &RunData, shown: Range<usize>) -> Result<String, TrainError> {
    let RunData { tokenizer, train, valid } = data;
    let mut text = train.report().to_string();
    if let Some(valid) = valid {
        _ = write!(text, "\nto validate on: {}", valid.report());
    }
    for (number, index) in samples(train, shown) {
        let example = train.preview(index, tokenizer, program::colours())?;
        let tokens = train.sample(index).ids.len();
        // Scripts look for the line that `train` has before its example.
        let heading = match (number, train.part_of_pair(index)) {
            (1, None) => "The first example".to_owned(),
            (_, None) => format!("Example {number}, {tokens} tokens"),
            (_, Some(part)) => format!("Example {number}, {part}, {tokens} tokens"),
        };
        _ = write!(text, "\n\n{heading}; what is trained is marked:\n{example}");
    }
    Ok(text)
}

/// The samples of some examples, with the number of their example.
fn samples(data: &Dataset, shown: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let each = data.samples_per_example();
    shown.flat_map(move |example| (0..each).map(move |part| (example + 1, example * each + part)))
}

/// The data as JSON.
pub fn json(data: &RunData, shown: Range<usize>) -> Result<Value, TrainError> {
    let RunData { tokenizer, train, valid } = data;
    let examples = samples(train, shown).map(|(number, index)| {
        let sample = train.sample(index);
        let spans = train.spans(index, tokenizer)?.into_iter().map(
            |span| json!({ "text": span.text, "trained": span.trained, "special": span.special }),
        );
        Ok(json!({
            "number": number,
            "part": train.part_of_pair(index),
            "tokens": sample.ids.len(),
            "trained_tokens": sample.target_count(),
            "spans": spans.collect::<Vec<_>>(),
        }))
    });
    let examples = examples.collect::<Result<Vec<_>, TrainError>>()?;
    let valid = valid.as_ref().map(Dataset::report);
    Ok(json!({ "train": train.report(), "valid": valid, "examples": examples }))
}
