//! Adds an adapter to its model, and writes a model that any program loads.
//!
//! ```sh
//! cargo run --release --example merge -- models/Llama-3.2-1B-Instruct out merged
//! ```

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/place.rs"]
mod place;
#[path = "support/precision.rs"]
mod precision;

use burn_lora::prelude::*;
use clap::Parser;
use place::Place;
use precision::Precision;
use std::{error::Error, fs, path::PathBuf, process::ExitCode};

/// Adds an adapter to the weights of its model, and writes safetensors, `config.json` and the
/// tokenizer's files.
#[derive(Parser)]
pub struct Arguments {
    /// The model: a folder in Hugging Face's layout, a .gguf file, or an id (feature `hub`). Its
    /// 16-bit weights are better than packed ones, also for an adapter that was trained on these
    model: PathBuf,
    /// A folder with an adapter of PEFT's
    adapter: PathBuf,
    /// The folder to write: a new or an empty one
    output: PathBuf,
    /// The numbers of the weights that are written; left out, those of the model's. Other ones than
    /// the model's take the memory of f32, in which they are computed
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    /// Where it is computed: auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "cpu")]
    device: Place,
    /// Write into a folder that has files already
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    program::run(|| merge(&Arguments::parse()))
}

/// All of it.
pub fn merge(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { model: path, adapter, output, dtype, .. } = arguments;
    check_output(arguments)?;
    let tokenizer = Tokenizer::from_pretrained(path)?;
    let loader = Llama::from_pretrained(path).progress(true);
    let stored = loader.stored_dtypes()?;
    let dtype = match dtype {
        Some(dtype) => FloatDType::from(*dtype),
        None => stored.first().copied().unwrap_or(FloatDType::BF16),
    };
    // Sums are computed in float32 and rounded once. A model that is stored in what is written takes
    // half the memory that way, too.
    let exact = if stored.iter().all(|stored| *stored == dtype) { dtype } else { FloatDType::F32 };
    let mut model = loader.dtype(exact).load(&arguments.device.device()?)?;
    model.load_adapter("default", adapter)?;
    let report = model.merge_and_unload(PackedMerge::Dense(exact))?;
    println!("{} layers changed; the weights are written in {dtype:?}.", report.layers.len());
    model.save_pretrained(output, &SaveOptions::new().dtype(dtype))?;
    tokenizer.save(output)?;
    // What was trained may end with other tokens than what the base generates.
    let generation = "generation_config.json";
    if adapter.join(generation).is_file() {
        fs::copy(adapter.join(generation), output.join(generation))?;
    }
    println!("The merged model is in {}.", output.display());
    Ok(())
}

/// Nothing is overwritten unasked, and what is read never.
fn check_output(arguments: &Arguments) -> Result<(), String> {
    let Arguments { model, adapter, output, force, .. } = arguments;
    let Ok(mut there) = fs::read_dir(output) else { return Ok(()) };
    let real = |path: &PathBuf| fs::canonicalize(path).ok();
    if [real(model), real(adapter)].contains(&real(output)) {
        return Err(format!("{}: it is read from: name another folder", output.display()));
    }
    if !force && there.next().is_some() {
        let reason = "it has files: name another folder, or write into it with --force";
        return Err(format!("{}: {reason}", output.display()));
    }
    Ok(())
}
