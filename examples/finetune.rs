//! Fine-tunes a model on your data: LoRA or QLoRA, from a run file, options, or both.
//!
//! ```sh
//! cargo run --release --features cuda --example finetune -- \
//!     --config examples/configs/llama-3.1-8b-qlora-24gb.toml \
//!     --model models/Llama-3.1-8B-Instruct --data chats.jsonl --valid-split 0.05 --output out
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
#[path = "support/run_file.rs"]
pub(crate) mod run_file;
#[path = "support/weights.rs"]
mod weights;

use answer::{Question, answer};
use burn_lora::{
    prelude::*,
    train::{plan::device_memory, watch::StopReason},
};
use clap::{Parser, ValueEnum};
use place::Place;
use program::Output;
use run_file::RunFile;
use std::{
    error::Error,
    io::{IsTerminal, stdout},
    path::PathBuf,
    process::ExitCode,
};
use weights::WeightFormat;

/// Fine-tunes a model on your data with LoRA, its weights in 4 bits (QLoRA) or as they are.
///
/// All settings are those of a run file; --print-config shows them with their values. Options
/// override the file, and --set overrides any setting.
#[derive(Parser)]
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
    /// Folder for adapter, checkpoints, metrics and loss plot
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu; cuda:0,cuda:1 trains on both
    #[arg(long, value_delimiter = ',', default_value = "auto")]
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
    #[arg(long, value_enum)]
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
    pub fn run(&self) -> Result<RunFile, String> {
        let mut run = RunFile::default();
        if let Some(file) = &self.config {
            run = run.with_file(file)?;
        }
        self.apply(&mut run);
        for setting in &self.set {
            run = run.with_setting(setting)?;
        }
        let validates = run.data.valid_split > 0.0 || !run.data.valid.is_empty();
        if validates && run.train.evaluate.is_none() {
            run.train.evaluate = Some(Every::Epochs(1));
        }
        Ok(run)
    }

    /// Applies the options to a run.
    fn apply(&self, run: &mut RunFile) {
        fn set<T: Clone, S: From<T>>(setting: &mut S, given: &Option<T>) {
            if let Some(value) = given {
                *setting = value.clone().into();
            }
        }
        let RunFile { model, adapter, data, train } = run;
        set(&mut model.path, &self.model);
        set(&mut model.format, &self.format);
        set(&mut model.adapter, &self.adapter);
        set(&mut adapter.r, &self.rank);
        set(&mut adapter.lora_alpha, &self.alpha);
        set(&mut adapter.seed, &self.seed);
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
        set(&mut train.seed, &self.seed);
        set(&mut train.batches.seed, &self.seed);
    }

    /// Answers `--sample` or continues `--sample-text`, if there is one.
    fn sample(&self, when: &str, model: &Llama, tokenizer: &Tokenizer) -> Result<(), LlamaError> {
        let message;
        let question = match (&self.sample, &self.sample_text) {
            (Some(question), _) => {
                message = [Message::user(question.as_str())];
                Question::Chat(&message)
            }
            (_, Some(text)) => Question::Text(text),
            _ => return Ok(()),
        };
        println!("\n{when}:");
        answer(model, tokenizer, question, &GenerateConfig::new(128), &mut Output::new())?;
        println!("\n");
        Ok(())
    }
}

fn main() -> ExitCode {
    program::run(|| finetune(&Arguments::parse(), Interrupt::on_ctrl_c))
}

/// Runs the fine-tuning. `interrupt` is called when there is something to interrupt; a run that a
/// signal ended has the exit status that shells expect.
pub fn finetune(
    arguments: &Arguments,
    interrupt: impl FnOnce() -> Result<Interrupt, TrainError>,
) -> Result<ExitCode, Box<dyn Error>> {
    let run = arguments.run()?;
    if arguments.print_config {
        print!("{}", run.to_toml()?);
        return Ok(ExitCode::SUCCESS);
    }
    run.check()?;
    let devices: Result<Vec<_>, _> = arguments.device.iter().map(|place| place.device()).collect();
    let devices = devices?;
    let device = devices.first().ok_or("--device names none")?;
    let path = run.model.path.as_ref().ok_or("no model")?;

    let output = run.train.output.clone().ok_or("no output")?;
    let mut trainer = Trainer::new(run.train.clone()).resume(arguments.resume);
    if !arguments.dry_run {
        // What is wrong with the folder shows at once.
        trainer = trainer.claim()?;
    }

    // The data first: what is wrong with them shows before a large model is read.
    let tokenizer = Tokenizer::from_pretrained(path)?;
    let data = run.data.load(&run.data.files, &tokenizer)?;
    let (train, valid) = match run.data.valid.as_slice() {
        [] if run.data.valid_split == 0.0 => (data, None),
        [] => {
            let (train, valid) = data.split(run.data.valid_split, run.data.split_seed);
            if valid.is_empty() || train.is_empty() {
                let (part, all) = (run.data.valid_split, data.len());
                let reason = format!("of {all} examples this leaves one side empty");
                return Err(format!("`data.valid_split` is {part}: {reason}").into());
            }
            (train, Some(valid))
        }
        files => (data, Some(run.data.load(files, &tokenizer)?)),
    };
    println!("{}", train.report());
    if let Some(valid) = &valid {
        println!("to validate on: {}", valid.report());
    }
    println!("\nThe first example; what is trained is marked:");
    println!("{}\n", train.preview(0, &tokenizer, stdout().is_terminal())?);

    let mut model = load(&run, device)?;
    model.check_tokenizer(&tokenizer);
    println!("{}\n", model.summary());
    let a_step = run.train.gradient_accumulation_steps * devices.len();
    let steps = train.epoch(&run.train.batches, 0)?.len().div_ceil(a_step);
    println!("{steps} steps per epoch on {device:?}\n");
    if arguments.dry_run {
        match plan(&run, &model, train.report().longest) {
            Ok(plan) => {
                println!("Memory estimate of a training step, on a GPU:\n{plan}\n");
                if let Some(bytes) = device_memory(device) {
                    let fits = if plan.fits(bytes) { "it fits" } else { "it does not fit" };
                    println!(
                        "This one has {:.2} GiB: {fits}.\n",
                        bytes as f64 / (1u64 << 30) as f64
                    );
                }
            }
            Err(error) => println!("No memory estimate of a training step: {error}\n"),
        }
        println!("The run, as a file:\n\n{}", run.to_toml()?);
        return Ok(ExitCode::SUCCESS);
    }

    arguments.sample("The model before", &model, &tokenizer)?;
    let interrupt = interrupt()?;
    let trainer = trainer.observe(Progress::new().lines(1)).interrupt(interrupt.clone());
    #[cfg(feature = "tensorboard")]
    let trainer = trainer.observe(burn_lora::train::watch::TensorBoard::new(output.join("runs")));
    let trainer = if devices.len() > 1 { trainer.devices(devices.clone()) } else { trainer };
    let report = trainer.fit(&mut model, &train, valid.as_ref())?;
    arguments.sample("The model now", &model, &tokenizer)?;

    let finished = &report.finished;
    println!("{}: {} steps, {:.0} s", finished.reason, finished.steps, finished.seconds);
    let folder = output.display();
    println!("{folder}/adapter_model.safetensors  the adapter, with adapter_config.json");
    println!("{folder}/metrics.jsonl              the metrics");
    println!("{folder}/loss.svg                   a picture of the loss");
    if finished.reason == StopReason::Interrupted {
        println!("The same command with --resume goes on.");
    }
    let format = run.model.format.to_possible_value();
    let format = format.as_ref().map_or("none", |format| format.get_name());
    let (command, path) = (command("chat"), path.display());
    println!("\nChat with it:\n  {command} {path} --adapter {folder} --format {format}");
    Ok(match interrupt.signal() {
        Some(signal) if finished.reason == StopReason::Interrupted => ExitCode::from(128 + signal),
        _ => ExitCode::SUCCESS,
    })
}

/// Loads the model with its adapter.
fn load(run: &RunFile, device: &Device) -> Result<Llama, Box<dyn Error>> {
    let settings = &run.model;
    let path = settings.path.as_ref().ok_or("no model")?;
    let mut loader =
        Llama::from_pretrained(path).progress(true).host_embeddings(settings.host_embeddings);
    if let Some(config) = settings.quantize()? {
        loader = loader.quantize(config);
    }
    if let Some(dtype) = settings.dtype {
        loader = loader.dtype(dtype.into());
    }
    let mut model = loader.load(device)?;
    match &settings.adapter {
        Some(folder) => model.load_adapter("default", folder)?,
        None => model.add_adapter("default", &run.lora()?)?,
    };
    Ok(model)
}

/// Memory estimate of a run whose longest example has `longest` tokens.
fn plan(run: &RunFile, model: &Llama, longest: usize) -> Result<MemoryPlan, Box<dyn Error>> {
    let configs = model.adapter_configs();
    let mut plan = MemoryPlan::new(&model.config)
        .on(&model.device())
        .dtype(model.dtype)
        .host_embeddings(run.model.host_embeddings)
        .adapter(&*configs["default"])?
        .train(&run.train)
        .length(run.train.batches.packing.unwrap_or(longest));
    if let Some(config) = run.model.quantize()? {
        plan = plan.quantize(config);
    }
    Ok(plan)
}

/// Command that starts another example, built as this one.
fn command(example: &str) -> String {
    let features = [
        ("cuda", cfg!(feature = "cuda")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("metal", cfg!(feature = "metal")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("hub", cfg!(feature = "hub")),
    ];
    let features: Vec<_> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    let features = match features.as_slice() {
        [] => String::new(),
        names => format!("--features {} ", names.join(",")),
    };
    format!("cargo run --release {features}--example {example} --")
}
