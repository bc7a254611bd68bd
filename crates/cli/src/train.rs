//! `burn-lora train`.

use crate::{
    answer::{Question, answer},
    preview,
    program::{self, Output},
    run_options::{RunOptions, with_option},
};
use burn_lora::{
    prelude::*,
    train::{
        RunModel,
        plan::device_memory,
        watch::{HtmlReport, StopReason},
    },
};
use clap::Args;
use serde_json::json;
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Fine-tunes a model on your data with LoRA, its weights in 4 bits (QLoRA) or as they are.
///
/// All settings are those of a run file; --print-config shows them with their values. Options
/// override the file, and --set overrides any setting.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunOptions,
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
    /// Answers `--sample` or continues `--sample-text`, if there is one, on standard output and in
    /// the report.
    fn sample(
        &self,
        when: &str,
        model: &RunModel,
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
        let Some(model) = model.llama() else { return Ok(()) };
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
    let run = arguments.run.run()?;
    if arguments.print_config {
        program::result(run.to_toml()?.trim_end(), &serde_json::to_value(&run)?);
        return Ok(ExitCode::SUCCESS);
    }
    run.validate().map_err(with_option)?;
    if run.objective.has_head() && (arguments.sample.is_some() || arguments.sample_text.is_some()) {
        return Err("--sample: a model with a head of its own does not answer".into());
    }
    let devices = run.devices()?;
    let device = &devices[0];
    let mut trainer = run.trainer()?.resume(arguments.resume);
    if !arguments.dry_run {
        // What is wrong with the folder shows at once.
        trainer = trainer.claim()?;
        run.begin()?;
    }

    // The data first: what is wrong with them shows before a large model is read.
    let mut data = run.load_data()?;
    if !arguments.dry_run {
        run.teach(&mut data, device)?;
    }
    let RunData { tokenizer, train, .. } = &data;
    let new = run.tokens.add.iter().chain(&run.tokens.special);
    for (token, id) in new.filter_map(|token| Some((token, tokenizer.token_to_id(token)?))) {
        println!("token {id}: {token:?}");
    }
    println!("{}\n", preview::text(&data, 0..1)?);

    let mut model = run.load_model(device)?;
    model.decoder().check_tokenizer(tokenizer);
    let run = run.within_budget(model.decoder(), train.report().longest)?;
    trainer = trainer.recompute(run.train.recompute);
    println!("{}\n", model.summary());
    println!("{} steps per epoch on {device:?}\n", run.steps_per_epoch(train)?);
    if arguments.dry_run {
        show_plan(&run, model.decoder(), train.report().longest);
        println!("The run, as a file:\n\n{}", run.to_toml()?);
        program::document(&preview::json(&data, 0..1)?);
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
    let report = run.fit(trainer.html_report(&mut page), &mut model, &data)?;
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
    if tokenizer.is_changed() {
        println!("{folder}/tokenizer.json             the tokenizer, with its new tokens");
    }
    println!("{folder}/metrics.jsonl              the metrics");
    println!("{folder}/loss.svg                   a picture of the loss");
    println!("{folder}/report.html                all of it as a page, for a browser");
    println!("{folder}/run.toml                   the settings, for --config");
    let address = run.push(&report)?;
    if let Some(address) = &address {
        println!("{address}  where it was uploaded");
    }
    if finished.reason == StopReason::Interrupted {
        println!("The same command with --resume goes on.");
    }
    program::document(&json!({
        "output": folder,
        "model": path,
        "finished": finished,
        "evaluations": report.evaluations,
        "checkpoint": report.checkpoint,
        "address": address,
    }));
    let format = run.model.format;
    match model.llama() {
        Some(_) => println!(
            "\nChat with it:\n  burn-lora chat {path} --adapter {folder} --format {format}"
        ),
        None => println!(
            "\nEvaluate it on other data:\n  burn-lora eval --config {folder}/run.toml --adapter {folder} \
             --data FILE"
        ),
    }
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
