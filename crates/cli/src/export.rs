//! `burn-lora export`.

use crate::{options, program};
use burn_lora::prelude::*;
use clap::Args;
use serde_json::json;
use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

/// Writes a model or an adapter for llama.cpp, Ollama, LM Studio and vLLM.
///
/// MODEL to FILE.gguf: the model, with --adapter merged into it, and a Modelfile for Ollama beside it. With
/// --adapter and --adapter-only, FILE.gguf is the adapter alone (llama.cpp's --lora), and a FOLDER gets its
/// files in PEFT's format such that vLLM and llama.cpp's converter compute the same: one rank, and
/// alpha / rank as its scale; with the settings and the tokenizer of its base in FOLDER/base, which the
/// converter asks for.
#[derive(Args)]
pub struct Arguments {
    /// The model: a folder in Hugging Face's layout, a .gguf file, an adapter that names its base, or an
    /// id (feature `hub`)
    model: PathBuf,
    /// A .gguf file, or with --adapter-only a folder
    output: PathBuf,
    /// Adapter in PEFT's format
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// Write the adapter alone
    #[arg(long)]
    adapter_only: bool,
    /// Type of the weights in a .gguf file
    #[arg(long = "type", value_parser = options::gguf_type(), default_value = "q8_0", conflicts_with = "adapter_only")]
    kind: GgufType,
    /// Device of the computation: auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "cpu")]
    device: Place,
    /// Overwrite files
    #[arg(long)]
    force: bool,
}

/// Runs the export.
pub fn export(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { model: path, output, adapter, adapter_only, kind, force, .. } = arguments;
    let gguf = output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if !gguf && !adapter_only {
        return Err(format!(
            "{}: a model is written as a .gguf file; for safetensors there is `burn-lora merge`",
            output.display()
        )
        .into());
    }
    let taken = match gguf {
        true => output.exists(),
        false => fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()),
    };
    if taken && !force {
        return Err(
            format!("{}: it is there already: --force overwrites it", output.display()).into()
        );
    }
    let tokenizer = options::tokenizer(path, adapter.as_deref())?;
    // Sums of weights and updates are made in float32, and rounded once.
    let loader = Llama::from_pretrained(path).dtype(FloatDType::F32);
    let mut model = loader.load(&arguments.device.device()?)?;
    if let Some(adapter) = adapter {
        model.load_adapter("default", adapter)?;
    }
    let name = model.adapter_names().first().cloned();
    if *adapter_only {
        let name = name.ok_or("there is no adapter: name it by --adapter")?;
        if gguf {
            model.save_adapter_gguf(&name, output)?;
            println!("{}  the adapter, for llama.cpp's --lora", output.display());
            program::document(&json!({ "adapter": output }));
            return Ok(());
        }
        let rank = model.export_adapter_for_vllm(&name, output)?;
        warn_of_names(path);
        let base = output.join("base");
        fs::create_dir_all(&base)?;
        let config = serde_json::to_vec_pretty(&model.config.raw)?;
        fs::write(base.join("config.json"), config)?;
        tokenizer.save(&base)?;
        println!("{}  the adapter, for vLLM with --max-lora-rank {rank}", output.display());
        println!(
            "{}  settings of its base: convert_lora_to_gguf.py --base {0} {}",
            base.display(),
            output.display()
        );
        program::document(&json!({ "adapter": output, "base": base, "max_lora_rank": rank }));
        return Ok(());
    }
    if name.is_some() {
        let report = model.merge_and_unload(PackedMerge::Dense(FloatDType::F32))?;
        println!("{} layers changed by the adapter.", report.layers.len());
    }
    model.save_gguf(output, &tokenizer, *kind)?;
    println!("{}  the model in {}", output.display(), kind.name());
    let file = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let modelfile = output.parent().unwrap_or(Path::new("")).join("Modelfile");
    let mut written = None;
    if modelfile.exists() && !force {
        println!("{} is there already, and stays as it is.", modelfile.display());
    } else {
        match tokenizer.modelfile(&file) {
            Ok(text) => {
                fs::write(&modelfile, text)?;
                println!("{}  for Ollama: ollama create NAME -f {0}", modelfile.display());
                written = Some(&modelfile);
            }
            Err(error) => eprintln!("No Modelfile for Ollama: {error}"),
        }
    }
    program::document(&json!({ "model": output, "type": kind.label(), "modelfile": written }));
    Ok(())
}

/// Warns if vLLM loads the base with a vision tower, under other names than those of the language model alone.
fn warn_of_names(model: &Path) {
    let base = burn_lora_io::base_of(model).ok().flatten();
    let config = base.unwrap_or_else(|| model.to_owned()).join("config.json");
    let text = fs::read_to_string(&config).unwrap_or_default();
    let config_json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    if config_json["text_config"].is_object() {
        burn_lora_io::warn!(
            "{}: a model with a vision tower. The adapter is one of its language model alone: vLLM needs that as \
             the base, which `burn-lora merge` and `Llama::save_pretrained` write",
            config.display()
        );
    }
}
