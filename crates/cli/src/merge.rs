//! `burn-lora merge`.

use crate::{options, program};
use burn_lora::prelude::*;
use clap::Args;
use serde_json::json;
use std::{error::Error, fs, path::PathBuf};

/// Merges an adapter into the weights of its base model.
///
/// It writes safetensors, config.json and the tokenizer's files: the adapter's own, if it has any.
///
/// With --format the weights stay packed, as bitsandbytes has them. An update that is small against
/// the distance of the codes is rounded away then: how much of it is kept is printed, and with --data
/// what that does to the loss. --rest keeps all of it: the packed base, and the adapter beside it.
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
    /// Format in which the weights stay packed: nf4 or fp4
    #[arg(long, value_parser = options::format())]
    format: Option<WeightFormat>,
    /// Leave the packed base as it is, and write the adapter beside it, into the folder `rest` of the
    /// output
    #[arg(long, requires = "format")]
    rest: bool,
    /// Data to print the loss on, before the merge and after it: .jsonl, .json, .csv or .parquet; may
    /// be given several times
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
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
    let (loader, merge) = match arguments.format {
        Some(format) => (loader.dtype(dtype).quantize(packed(format)?), PackedMerge::Requantize),
        None => {
            // Sums are computed in float32 and rounded once. So they are, with half the memory, in a model
            // whose weights are all stored in the dtype that is written, and which is loaded in it.
            let same = stored.iter().all(|stored| *stored == dtype);
            let exact = if same { dtype } else { FloatDType::F32 };
            (loader.dtype(exact), PackedMerge::Dense(exact))
        }
    };
    let data = match arguments.data.as_slice() {
        [] => None,
        files => Some(Dataset::from_files(files).max_length(2048).load(&tokenizer)?),
    };
    let mut model = loader.load(&arguments.device.device()?)?;
    model.load_adapter("default", adapter)?;
    let batches = BatchConfig { size: 8, ..BatchConfig::default() };
    let loss = |model: &Llama| {
        let found = data.as_ref().map(|data| evaluate(model, data, &batches)).transpose()?;
        Ok::<_, TrainError>(found.map(|found| found.loss))
    };
    let before = loss(&model)?;
    let report = if arguments.rest {
        let rest = output.join("rest");
        model.save_adapter("default", &rest)?;
        model.delete_adapter("default")?;
        println!("The adapter is in {}: load it with the model beside it.", rest.display());
        MergeReport::default()
    } else {
        let report = model.merge_and_unload(merge)?;
        println!("{} layers changed; the weights are written in {dtype:?}.", report.layers.len());
        println!("{:.1} % of the update is kept.", 100.0 * report.kept);
        report
    };
    let after = if arguments.rest { before } else { loss(&model)? };
    if let (Some(before), Some(after)) = (before, after) {
        println!(
            "Loss of the model with its adapter {before:.4}, and of what is written {after:.4}."
        );
    }
    let packed = arguments.format.is_some();
    model.save_pretrained(output, &SaveOptions::new().dtype(dtype).packed(packed))?;
    tokenizer.save(output)?;
    // The trained model may end texts with other tokens than the base model.
    let generation = "generation_config.json";
    if adapter.join(generation).is_file() {
        fs::copy(adapter.join(generation), output.join(generation))?;
    }
    println!("The merged model is in {}.", output.display());
    let layers: Vec<_> = report.layers.iter().map(|layer| &layer.path).collect();
    let kept: Vec<_> = report.layers.iter().map(|layer| layer.kept).collect();
    let dtype = format!("{dtype:?}").to_lowercase();
    program::document(&json!({
        "output": output, "dtype": dtype, "layers": layers, "kept": report.kept, "kept_by_layer": kept,
        "loss_before": before, "loss": after,
    }));
    Ok(())
}

/// The settings of a format that checkpoints have packed weights in.
fn packed(format: WeightFormat) -> Result<QuantConfig, String> {
    let found =
        format.four_bits().filter(|_| [WeightFormat::Nf4, WeightFormat::Fp4].contains(&format));
    found.ok_or_else(|| {
        let name = format.name();
        format!(
            "--format {name}: packed weights are written in nf4 and fp4, which other programs read"
        )
    })
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
