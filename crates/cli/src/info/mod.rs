//! `burn-lora info`.

mod adapter;
mod facts;
mod gguf;
mod model;
mod run;

use crate::program;
use burn_lora_io::{hub, shards, tensor_headers};
use clap::Args;
use facts::Facts;
use serde_json::Value;
use std::{
    error::Error,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

const EXAMPLES: &str = "\
Examples:
  burn-lora info models/Llama-3.2-1B-Instruct out model.gguf
  burn-lora info out --json | jq '.[0].rank'";

/// Shows what a model, an adapter, a GGUF file, an output folder or a run file is, and whether it can be loaded.
///
/// It reads settings and the headers of weight files, no weights. What it cannot load is shown as far as
/// it is understood, with the reason.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Folders of models and adapters, output folders and checkpoints of a run, .gguf and
    /// .safetensors files, run files, ids (feature `hub`)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Shows each path; an error if one of them is nothing that is known here, after the others.
pub fn info(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut values = vec![];
    let mut failed = None;
    for (number, path) in arguments.paths.iter().enumerate() {
        let (facts, warnings) = burn_lora_io::collect(|| facts(path));
        match facts {
            Ok(mut facts) => {
                facts.path(path);
                for warning in warnings {
                    facts.warn(&warning);
                }
                if !program::is_json() {
                    println!("{}{facts}", if number > 0 { "\n" } else { "" });
                }
                values.push(facts.into_json());
            }
            // The last one is the error of the program.
            Err(error) => {
                if let Some(error) = failed.replace(error) {
                    program::error(&*error);
                }
            }
        }
    }
    program::document(&Value::Array(values));
    failed.map_or(Ok(()), Err)
}

/// Finds out what a path is.
fn facts(source: &Path) -> Result<Facts, Box<dyn Error>> {
    let path = &hub::resolve_settings(source)?;
    let kind = fs::metadata(path).map_err(|error| format!("{}: {error}", source.display()))?;
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    if kind.is_file() {
        if extension == "gguf" || begins_with(path, b"GGUF") {
            return gguf::facts(path);
        }
        return match extension.to_str() {
            Some("toml") => run::file(path),
            Some("safetensors" | "bin" | "pt" | "pth") => {
                let mut facts = Facts::new("weights");
                facts.tensors(&tensor_headers(path)?);
                Ok(facts)
            }
            Some("json") => {
                let folder = path.parent().unwrap_or(Path::new("")).display();
                Err(format!("{}: name its folder: {folder}", path.display()).into())
            }
            _ => Err(format!(
                "{}: it is no .gguf, .safetensors or .toml file; a model or an adapter is a folder",
                path.display()
            )
            .into()),
        };
    }
    let has = |name: &str| path.join(name).is_file();
    let weights = !shards::weight_files(path).unwrap_or_default().is_empty();
    let mut facts = if has("adapter_config.json") && !weights {
        adapter::facts(path)?
    } else if has("config.json") || weights {
        model::facts(path, path != source)?
    } else if run::is_output(path) {
        Facts::new("output folder of a run")
    } else {
        return Err(format!(
            "{}: the folder has neither config.json nor adapter_config.json{}",
            path.display(),
            within(path)
        )
        .into());
    };
    run::add(path, &mut facts);
    Ok(facts)
}

/// What a folder has that can be named instead.
fn within(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let known = entries.filter(|path| {
        path.extension().is_some_and(|extension| extension == "gguf")
            || ["config.json", "adapter_config.json"].iter().any(|file| path.join(file).is_file())
    });
    let mut names: Vec<_> =
        known.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect();
    names.sort();
    match names.is_empty() {
        true => String::new(),
        false => format!("; there are {}", burn_lora_io::listed(names)),
    }
}

fn begins_with(path: &Path, magic: &[u8; 4]) -> bool {
    let mut found = [0; 4];
    burn_lora_io::open(path).and_then(|mut file| file.read_exact(&mut found)).is_ok()
        && found == *magic
}
