//! `burn-lora merge`.

use crate::{options, program};
use burn_lora::prelude::*;
use clap::Args;
use serde_json::json;
use std::{error::Error, fs, path::PathBuf};

/// Merges an adapter into the weights of its base model.
///
/// It writes safetensors, config.json and the tokenizer's files: the adapter's own, if it has any.
#[derive(Args)]
pub struct Arguments {
    /// The model: a folder in Hugging Face's layout, a .gguf file, or an id (feature `hub`). Its
    /// 16-bit weights are better than packed ones, also for an adapter that was trained on these
    model: PathBuf,
    /// Folder of an adapter in PEFT's format
    adapter: PathBuf,
    /// Output folder: a new or an empty one
    output: PathBuf,
    /// Dtype of the weights that are written; if left out, the model's. Another one than the
    /// model's takes the memory of f32, in which the weights are computed
    #[arg(long, value_parser = options::dtype())]
    dtype: Option<Precision>,
    /// Device of the computation: auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "cpu")]
    device: Place,
    /// Write into a folder that has files already
    #[arg(long)]
    force: bool,
}

/// Runs the merge.
pub fn merge(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { model: path, adapter, output, dtype, .. } = arguments;
    check_output(arguments)?;
    let tokenizer = options::tokenizer(path, Some(adapter))?;
    let loader = Llama::from_pretrained(path);
    let stored = loader.stored_dtypes()?;
    let dtype = match dtype {
        Some(dtype) => FloatDType::from(*dtype),
        None => stored.first().copied().unwrap_or(FloatDType::BF16),
    };
    // Sums are computed in float32 and rounded once. So they are, with half the memory, in a model
    // whose weights are all stored in the dtype that is written, and which is loaded in it.
    let exact = if stored.iter().all(|stored| *stored == dtype) { dtype } else { FloatDType::F32 };
    let mut model = loader.dtype(exact).load(&arguments.device.device()?)?;
    model.load_adapter("default", adapter)?;
    let report = model.merge_and_unload(PackedMerge::Dense(exact))?;
    println!("{} layers changed; the weights are written in {dtype:?}.", report.layers.len());
    model.save_pretrained(output, &SaveOptions::new().dtype(dtype))?;
    tokenizer.save(output)?;
    // The trained model may end texts with other tokens than the base model.
    let generation = "generation_config.json";
    if adapter.join(generation).is_file() {
        fs::copy(adapter.join(generation), output.join(generation))?;
    }
    println!("The merged model is in {}.", output.display());
    let layers: Vec<_> = report.layers.iter().map(|layer| &layer.path).collect();
    let dtype = format!("{dtype:?}").to_lowercase();
    program::document(&json!({ "output": output, "dtype": dtype, "layers": layers }));
    Ok(())
}

/// Checks that nothing is overwritten unasked, and the inputs never.
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
