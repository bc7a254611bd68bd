//! `burn-lora train`.

use crate::{
    answer::{Question, answer},
    options,
    program::Output,
};
use burn_lora::{
    prelude::*,
    train::{
        plan::device_memory,
        watch::{HtmlReport, StopReason},
    },
};
use clap::Args;
use std::{
    error::Error,
    io::{IsTerminal, stdout},
    path::PathBuf,
    process::ExitCode,
};

/// Fine-tunes a model on your data with LoRA, its weights in 4 bits (QLoRA) or as they are.
///
/// All settings are those of a run file; --print-config shows them with their values. Options
/// override the file, and --set overrides any setting.
#[derive(Args)]
pub struct Arguments {
    /// Run file; examples/configs has some
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Files to train on: .jsonl, .json, .csv, .parquet
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Files to validate on
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "valid_split")]
    valid: Vec<PathBuf>,
    /// Fraction of the data to keep for validation, such as 0.05
    #[arg(long, value_name = "PART")]
    valid_split: Option<f64>,
    /// Folder for adapter, checkpoints, metrics and report
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu; cuda:0,cuda:1 trains on both [default: auto]
    #[arg(long, value_delimiter = ',')]
    device: Vec<Place>,
    /// Passes over the data
    #[arg(long)]
    epochs: Option<f64>,
    /// Maximum number of optimizer steps
    #[arg(long)]
    max_steps: Option<usize>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Rank of the adapter
    #[arg(long)]
    rank: Option<usize>,
    /// Alpha of the adapter: the update is scaled by alpha / rank
    #[arg(long)]
    alpha: Option<f64>,
    /// Rows per micro-batch
    #[arg(long, value_name = "ROWS")]
    batch_size: Option<usize>,
    /// Micro-batches per optimizer step
    #[arg(long, value_name = "COUNT")]
    gradient_accumulation_steps: Option<usize>,
    /// Maximum number of tokens per example
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Storage format of the linear layers
    #[arg(long, value_parser = options::format())]
    format: Option<WeightFormat>,
    /// Seed of everything random
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of an adapter to continue training, in place of a new one
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// Any setting of the run file, as in train.neftune=5; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Resume from the last checkpoint in the output folder, if there is one
    #[arg(long)]
    resume: bool,
    /// Question to answer before and after the training
    #[arg(long, value_name = "QUESTION", conflicts_with = "sample_text")]
    sample: Option<String>,
    /// Text to continue before and after the training, without the chat template
    #[arg(long, value_name = "TEXT")]
    sample_text: Option<String>,
    /// Load model and data, show what would be trained on, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print the whole run file with all defaults, and stop
    #[arg(long)]
    print_config: bool,
}

impl Arguments {
    /// Builds the run from its layers: defaults, file, options, `--set`.
    fn run(&self) -> Result<RunConfig, Box<dyn Error>> {
        let mut run = match &self.config {
            Some(file) => RunConfig::from_file(file)?,
            None => RunConfig::default(),
        };
        if let Some(rank) = self.rank {
            run = run.with("adapter.r", rank)?;
        }
        if let Some(alpha) = self.alpha {
            run = run.with("adapter.lora_alpha", alpha)?;
        }
        self.apply(&mut run);
        for setting in &self.set {
            run = run.with_setting(setting).map_err(|error| format!("--set {error}"))?;
        }
        Ok(run.completed())
    }

    /// Applies the options to a run.
    fn apply(&self, run: &mut RunConfig) {
        fn set<T: Clone, S: From<T>>(setting: &mut S, given: &Option<T>) {
            if let Some(value) = given {
                *setting = value.clone().into();
            }
        }
        let RunConfig { devices, model, adapter, data, train, .. } = run;
        if !self.device.is_empty() {
            devices.clone_from(&self.device);
        }
        set(&mut model.path, &self.model);
        set(&mut model.format, &self.format);
        set(&mut model.adapter, &self.adapter);
        if let Some(seed) = self.seed {
            *adapter = adapter.clone().seed(seed);
            *train = train.clone().seed(seed);
        }
        if !self.data.is_empty() {
            data.files.clone_from(&self.data);
        }
        if !self.valid.is_empty() {
            (data.valid, data.valid_split) = (self.valid.clone(), 0.0);
        }
        if let Some(part) = self.valid_split {
            (data.valid, data.valid_split) = (vec![], part);
        }
        set(&mut data.max_length, &self.max_length);
        set(&mut train.output, &self.output);
        set(&mut train.epochs, &self.epochs);
        set(&mut train.max_steps, &self.max_steps);
        set(&mut train.learning_rate, &self.lr);
        set(&mut train.batches.size, &self.batch_size);
        set(&mut train.gradient_accumulation_steps, &self.gradient_accumulation_steps);
    }

    /// Answers `--sample` or continues `--sample-text`, if there is one, on standard output and in
    /// the report.
    fn sample(
        &self,
        when: &str,
        model: &Llama,
        tokenizer: &Tokenizer,
        config: &GenerateConfig,
        report: &mut HtmlReport,
    ) -> Result<(), LlamaError> {
        let message;
        let (text, question) = match (&self.sample, &self.sample_text) {
            (Some(question), _) => {
                message = [Message::user(question.as_str())];
                (question, Question::Chat(&message))
            }
            (_, Some(text)) => (text, Question::Text(text)),
            _ => return Ok(()),
        };
        println!("\nThe model {when}:");
        let found = answer(model, tokenizer, question, config, &mut Output::new())?;
        println!("\n");
        report.answer(&format!("The model {when}"), text, &found.text);
        Ok(())
    }
}

/// Runs the fine-tuning. `interrupt` is called when there is something to interrupt; a run that a
/// signal ended has the exit status that shells expect.
pub fn train(
    arguments: &Arguments,
    interrupt: impl FnOnce() -> Result<Interrupt, TrainError>,
) -> Result<ExitCode, Box<dyn Error>> {
    let run = arguments.run()?;
    if arguments.print_config {
        print!("{}", run.to_toml()?);
        return Ok(ExitCode::SUCCESS);
    }
    run.validate().map_err(with_option)?;
    let devices = run.devices()?;
    let device = &devices[0];
    let mut trainer = run.trainer()?.resume(arguments.resume);
    if !arguments.dry_run {
        // What is wrong with the folder shows at once.
        trainer = trainer.claim()?;
    }

    // The data first: what is wrong with them shows before a large model is read.
    let data = run.load_data()?;
    let RunData { tokenizer, train, valid } = &data;
    println!("{}", train.report());
    if let Some(valid) = valid {
        println!("to validate on: {}", valid.report());
    }
    println!("\nThe first example; what is trained is marked:");
    println!("{}\n", train.preview(0, tokenizer, stdout().is_terminal())?);

    let mut model = run.load_model(device)?;
    model.check_tokenizer(tokenizer);
    let run = run.within_budget(&model, train.report().longest)?;
    trainer = trainer.recompute(run.train.recompute);
    println!("{}\n", model.summary());
    println!("{} steps per epoch on {device:?}\n", run.steps_per_epoch(train)?);
    if arguments.dry_run {
        show_plan(&run, &model, train.report().longest);
        println!("The run, as a file:\n\n{}", run.to_toml()?);
        return Ok(ExitCode::SUCCESS);
    }

    let mut page = run.html_report(&data)?;
    arguments.sample("before", &model, tokenizer, &run.generate, &mut page)?;
    let interrupt = interrupt()?;
    let trainer = trainer.observe(Progress::new().lines(1)).interrupt(interrupt.clone());
    #[cfg(feature = "tensorboard")]
    let trainer = match &run.train.output {
        Some(output) => {
            trainer.observe(burn_lora::train::watch::TensorBoard::new(output.join("runs")))
        }
        None => trainer,
    };
    let report = trainer.html_report(&mut page).fit(&mut model, train, valid.as_ref())?;
    arguments.sample("now", &model, tokenizer, &run.generate, &mut page)?;
    if let Err(error) = page.write() {
        burn_lora_io::warn!("the report lacks the last answer: {error}");
    }

    let finished = &report.finished;
    println!("{}: {} steps, {:.0} s", finished.reason, finished.steps, finished.seconds);
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let [folder, path] =
        [&run.train.output, &run.model.path].map(|path| shown(path).unwrap_or_default());
    println!("{folder}/adapter_model.safetensors  the adapter, with adapter_config.json");
    println!("{folder}/metrics.jsonl              the metrics");
    println!("{folder}/loss.svg                   a picture of the loss");
    println!("{folder}/report.html                all of it as a page, for a browser");
    if finished.reason == StopReason::Interrupted {
        println!("The same command with --resume goes on.");
    }
    let format = run.model.format;
    println!("\nChat with it:\n  burn-lora chat {path} --adapter {folder} --format {format}");
    Ok(match interrupt.signal() {
        Some(signal) if finished.reason == StopReason::Interrupted => ExitCode::from(128 + signal),
        _ => ExitCode::SUCCESS,
    })
}

/// Prints the memory estimate of a step with rows of `longest` tokens.
fn show_plan(run: &RunConfig, model: &Llama, longest: usize) {
    let device = model.device();
    match run.plan(&model.config, longest) {
        Ok(plan) => {
            let plan = plan.on(&device).dtype(model.dtype);
            println!("Memory estimate of a training step, on a GPU:\n{plan}\n");
            if let Some(bytes) = device_memory(&device) {
                let fits = if plan.fits(bytes) { "it fits" } else { "it does not fit" };
                println!("This one has {:.2} GiB: {fits}.\n", bytes as f64 / (1u64 << 30) as f64);
            }
        }
        Err(error) => println!("No memory estimate of a training step: {error}\n"),
    }
}

/// An error of the settings, with the option that sets what is missing.
fn with_option(error: TrainError) -> Box<dyn Error> {
    let option = match &error {
        TrainError::Missing { name: "model.path", .. } => "--model FOLDER",
        TrainError::Missing { name: "data.files", .. } => "--data FILE",
        TrainError::Missing { name: "train.output", .. } => "--output FOLDER",
        _ => return error.into(),
    };
    format!("{error} ({option})").into()
}
