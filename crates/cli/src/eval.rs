//! `burn-lora eval`.

use crate::{options, program, run_options::DataOptions};
use burn_lora::{
    prelude::*,
    train::{RunModel, evaluate_with, watch::EvalMetrics},
};
use clap::Args;
use serde_json::{Value, json};
use std::{error::Error, fmt::Write, path::PathBuf};

const EXAMPLES: &str = "\
Examples:
  burn-lora eval models/Llama-3.2-1B-Instruct --data test.jsonl
  burn-lora eval models/Llama-3.2-1B-Instruct --data test.jsonl --adapter base --adapter out
  burn-lora eval --config run.toml --adapter out --json | jq '.results[0].loss'";

/// Name of the model without an adapter.
const MODEL: &str = "base";

/// Evaluates a model on data: loss, perplexity and accuracy of the trained tokens.
///
/// With several --adapter there is a row for each; `base` is the model without any. The data are
/// those of --data, or those that a run file (--config) validates on.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`); that of the
    /// run file if left out
    model: Option<PathBuf>,
    #[command(flatten)]
    data: DataOptions,
    /// Folder of an adapter in PEFT's format, or `base`; may be given several times
    #[arg(long, value_name = "FOLDER")]
    adapter: Vec<PathBuf>,
    /// Storage format of the linear layers [default: none, or the run file's]
    #[arg(long, value_parser = options::format())]
    format: Option<WeightFormat>,
    /// Dtype of the computation [default: by checkpoint and device]
    #[arg(long, value_parser = options::dtype())]
    dtype: Option<Precision>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu [default: auto, or the run file's]
    #[arg(long)]
    device: Option<Place>,
    /// Also let the model answer, and count the answers that are those of the data: all examples, or
    /// this many, spread over the data
    #[arg(long, value_name = "EXAMPLES", num_args = 0..=1, default_missing_value = "0")]
    exact_match: Option<usize>,
    /// Rows per batch
    #[arg(long, value_name = "ROWS", value_parser = options::number(1 << 16))]
    batch_size: Option<usize>,
}

impl Arguments {
    /// The settings: defaults or file, and options.
    fn run(&self) -> Result<RunConfig, Box<dyn Error>> {
        let mut run = self.data.file()?;
        if !self.data.has_file() {
            run.model.format = WeightFormat::None;
        }
        let RunConfig { devices, model, data, train, .. } = &mut run;
        model.path = self.model.clone().or(model.path.take());
        model.format = self.format.unwrap_or(model.format);
        model.dtype = self.dtype.or(model.dtype);
        train.batches.size = self.batch_size.unwrap_or(train.batches.size);
        if let Some(device) = &self.device {
            *devices = vec![*device];
        }
        if !self.data.files().is_empty() {
            (data.valid, data.valid_split, data.limit) = (vec![], 0.0, 0);
        }
        let run = self.data.over(run)?;
        if run.model.path.is_none() {
            return Err("there is no model: name one, or a run file by --config".into());
        }
        if self.data.files().is_empty() && !run.data.has_validation() {
            return Err("there are no data: name files by --data, or a run file with data to \
                        validate on by --config"
                .into());
        }
        run.data.validate()?;
        run.model.validate()?;
        Ok(run)
    }
}

/// Evaluates, and prints a table.
pub fn eval(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let run = arguments.run()?;
    let device = run.devices()?.swap_remove(0);
    // An adapter with new tokens has a tokenizer of its own.
    let mut reader = run.clone();
    let adapter = arguments.adapter.iter().find(|folder| folder.as_os_str() != MODEL);
    reader.model.adapter = adapter.cloned().or(reader.model.adapter);
    let RunData { tokenizer, train, valid } = reader.load_data()?;
    let own = arguments.data.files().is_empty() && valid.is_some();
    let data = run.teach_evaluation(&valid.unwrap_or(train), own, &device)?;
    if run.objective.has_head() {
        return eval_heads(arguments, &reader, &data, &device);
    }
    let answers = arguments.exact_match.map(|count| {
        let count = if count == 0 { usize::MAX } else { count };
        Answers::new(run.generate.clone()).exact_match().examples(count)
    });
    let mut model = run.model.loader()?.load(&device)?;
    model.check_tokenizer(&tokenizer);
    let batches = batches(&run);
    let mut base = model.clone();
    base.select(Selection::base())?;
    let data = run.compared(&base, &data, &batches)?;
    drop(base);
    let objective = run.objective_of(&model)?;
    let measure = |model: &Llama| {
        let mut found = evaluate_with(&*objective, model, &data, &batches)?;
        if let Some(answers) = &answers {
            answers.add_to(&mut found, model, &data)?;
        }
        Ok::<_, TrainError>(found)
    };

    let mut rows = vec![];
    if arguments.adapter.is_empty() {
        // An adapter's folder in place of the model brings its adapter.
        let own = if model.adapter_names().is_empty() { MODEL } else { "default" };
        rows.push((own.to_owned(), measure(&model)?));
    }
    for (number, folder) in arguments.adapter.iter().enumerate() {
        let shown = folder.display().to_string();
        let metrics = if shown == MODEL {
            model.select(Selection::base())?;
            measure(&model)?
        } else {
            // One at a time: an adapter may have parts of the base that all others would see.
            let name = format!("adapter{number}");
            model.load_adapter(&name, folder)?;
            model.select(Selection::adapters([&name]))?;
            let metrics = measure(&model)?;
            model.delete_adapter(&name)?;
            metrics
        };
        rows.push((shown, metrics));
    }
    show(&run, &data, &rows);
    Ok(())
}

/// Evaluates models with the head of their objective, which is part of their adapter.
fn eval_heads(
    arguments: &Arguments,
    run: &RunConfig,
    data: &Dataset,
    device: &Device,
) -> Result<(), Box<dyn Error>> {
    if arguments.exact_match.is_some() {
        return Err("--exact-match: a model with a head of its own does not answer".into());
    }
    let given = arguments.adapter.iter().map(|folder| Some(folder.clone()));
    let own = arguments.adapter.is_empty().then(|| run.model.adapter.clone());
    let mut rows = vec![];
    for folder in given.chain(own) {
        let Some(folder) = folder.filter(|folder| folder.as_os_str() != MODEL) else {
            return Err("the head is that of an adapter: name it by --adapter".into());
        };
        let shown = folder.display().to_string();
        let mut one = run.clone();
        one.model.adapter = Some(folder);
        let RunModel::Classifier(model) = one.load_model(device)? else {
            unreachable!("the objective has a head")
        };
        rows.push((shown, run.evaluate_classifier(&model, data, &batches(run))?));
    }
    show(run, data, &rows);
    Ok(())
}

/// Batches of as many rows as those of the training.
fn batches(run: &RunConfig) -> BatchConfig {
    let BatchConfig { size, share_prompts, .. } = run.train.batches;
    BatchConfig { size, share_prompts, ..BatchConfig::default() }
}

fn show(run: &RunConfig, data: &Dataset, rows: &[(String, EvalMetrics)]) {
    let value = json!({
        "model": run.model.path,
        "data": data.report(),
        "results": rows.iter().map(|(name, metrics)| json_row(name, metrics)).collect::<Vec<_>>(),
    });
    program::result(format_args!("{}\n\n{}", data.report(), table(rows)), &value);
}

/// A row as JSON: all but the step, which is none.
fn json_row(name: &str, metrics: &EvalMetrics) -> Value {
    let mut row = serde_json::to_value(metrics).unwrap_or_default();
    if let Value::Object(fields) = &mut row {
        fields.remove("step");
        fields.remove("epoch");
        fields.insert("adapter".into(), name.into());
    }
    row
}

/// A table of all metrics that there are, whatever their names.
fn table(rows: &[(String, EvalMetrics)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(7);
    let names: Vec<&str> = rows
        .first()
        .map(|(_, row)| row.metrics.iter().map(|(name, _)| name).collect())
        .unwrap_or_default();
    let mut text = format!("{:width$}  {:>8}", "adapter", "loss");
    names.iter().for_each(|name| _ = write!(text, "  {name:>8}"));
    for (name, row) in rows {
        _ = write!(text, "\n{:width$}  {:>8.4}", burn_lora_io::escaped(name).to_string(), row.loss);
        for name in &names {
            let wide = name.len().max(8);
            _ = write!(text, "  {:>wide$.4}", row.metrics.get(name).unwrap_or(f64::NAN));
        }
    }
    text
}
