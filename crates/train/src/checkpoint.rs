//! Checkpoints: all that a run needs to resume as if it had not been stopped.
//!
//! A checkpoint is a folder `checkpoint-STEP` with the adapter in PEFT's format, the exact values
//! of all trained parameters and the optimizer state in `training_state.safetensors`, and the rest
//! in `trainer_state.json`. It is written under a temporary name and renamed, so a checkpoint that
//! exists is complete, whenever the process was killed.

use crate::{
    TrainError,
    data::Dataset,
    identity::Identity,
    optim::State,
    params::{self, Flat},
    schedule::Plateau,
};
use burn::tensor::{DType, Tensor, TensorData};
use burn_lora_llama::CausalLm;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

const PREFIX: &str = "checkpoint-";
const UNFINISHED: &str = ".unfinished-";
pub(crate) const STATE: &str = "trainer_state.json";
pub(crate) const TENSORS: &str = "training_state.safetensors";
/// Prefix of the optimizer's tensor names.
const OPTIMIZER: &str = "optimizer.";

/// Position of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TrainerState {
    /// Optimizer steps done.
    pub step: usize,
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// Epoch of the next step, from 0.
    pub epoch: usize,
    /// Steps of that epoch done.
    pub position: usize,
    /// Tokens processed.
    pub tokens: u64,
    /// Step with the best validation loss, and that loss.
    pub best: Option<(usize, f64)>,
    /// Consecutive evaluations that did not improve by the threshold of early stopping.
    pub not_better: usize,
    pub plateau: Plateau,
    /// Identity of the run, which must not change when it is resumed.
    pub run: Identity,
}

/// A checkpoint read from its folder.
pub(crate) struct Checkpoint {
    pub place: TrainerState,
    pub tensors: State,
    pub folder: PathBuf,
}

/// Reason that a checkpoint cannot be used.
pub(crate) enum Damage {
    /// The checkpoint is incomplete: files are missing or truncated.
    Torn(TrainError),
    /// The checkpoint is complete, but invalid.
    Wrong(TrainError),
}

pub(crate) fn folder_of(output: &Path, step: usize) -> PathBuf {
    output.join(format!("{PREFIX}{step}"))
}

/// Checkpoints of a run, by step.
pub(crate) fn list(output: &Path) -> Result<BTreeMap<usize, PathBuf>, TrainError> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(TrainError::io(output, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| TrainError::io(output, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.strip_prefix(PREFIX).and_then(|step| step.parse::<usize>().ok());
        // `checkpoint-+9` and `checkpoint-09` are not ours.
        if let Some(step) = step.filter(|step| path == folder_of(output, *step)) {
            found.insert(step, path);
        }
    }
    Ok(found)
}

/// Writes a checkpoint, and removes all others but the last `limit` and the best.
pub(crate) fn save<M: CausalLm>(
    output: &Path,
    model: &M,
    train: &Dataset,
    optimizer: State,
    progress: &TrainerState,
    limit: usize,
) -> Result<PathBuf, TrainError> {
    fs::create_dir_all(output).map_err(|error| TrainError::io(output, error))?;
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(output)
        .map_err(|error| TrainError::io(output, error))?;
    model.save_trained(unfinished.path())?;
    train.save_tokenizer(unfinished.path())?;

    let mut tensors: State = params::values(model)
        .into_iter()
        .map(|(path, value)| (format!("model.{path}"), params::own(value.into_data())))
        .collect();
    tensors.extend(optimizer.into_iter().map(|(name, data)| (format!("{OPTIMIZER}{name}"), data)));
    let path = unfinished.path().join(TENSORS);
    write_tensors(&path, &tensors)?;
    let json = serde_json::to_vec(progress).expect("it has no other keys than strings");
    let path = unfinished.path().join(STATE);
    burn_lora_io::replace(&path, &json).map_err(|error| TrainError::io(&path, error))?;

    let folder = folder_of(output, progress.step);
    if fs::symlink_metadata(&folder).is_ok() {
        remove(output, &folder)?;
    }
    let written = unfinished.keep();
    fs::rename(&written, &folder).map_err(|error| TrainError::io(&folder, error))?;
    fs::File::open(output).and_then(|folder| folder.sync_all()).ok();

    let mut others: Vec<_> = list(output)?.into_iter().collect();
    others.retain(|(step, _)| progress.best.is_none_or(|(best, _)| best != *step));
    let surplus = others.len().saturating_sub(limit.max(1));
    for (_, path) in others.into_iter().take(surplus) {
        if let Err(error) = remove(output, &path) {
            burn_lora_io::warn!("an old checkpoint could not be removed: {error}");
        }
    }
    Ok(folder)
}

/// Removes a checkpoint. It is renamed first, so a partly deleted one does not count as a
/// checkpoint.
fn remove(output: &Path, folder: &Path) -> Result<(), TrainError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let going = output.join(format!("{UNFINISHED}{name}"));
    fs::remove_dir_all(&going).ok();
    let removed = fs::rename(folder, &going).and_then(|()| match going.is_dir() {
        true => fs::remove_dir_all(&going),
        false => fs::remove_file(&going),
    });
    removed.map_err(|error| TrainError::io(folder, error))
}

/// Removes unfinished checkpoints of a killed process.
pub(crate) fn tidy(output: &Path) {
    let Ok(entries) = fs::read_dir(output) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(UNFINISHED) {
            fs::remove_dir_all(&path).ok();
        }
    }
}

/// Renames an incomplete checkpoint to `NAME.torn`.
pub(crate) fn set_aside(folder: &Path) -> Result<PathBuf, TrainError> {
    let mut name = folder.as_os_str().to_owned();
    name.push(".torn");
    let aside = PathBuf::from(name);
    fs::rename(folder, &aside).map_err(|error| TrainError::io(folder, error))?;
    Ok(aside)
}

/// Reads a checkpoint.
pub(crate) fn read(folder: &Path) -> Result<Checkpoint, Damage> {
    let place = read_place(&folder.join(STATE))?;
    let tensors = read_tensors(&folder.join(TENSORS))?;
    Ok(Checkpoint { place, tensors, folder: folder.to_owned() })
}

fn read_file(path: &Path) -> Result<Vec<u8>, Damage> {
    burn_lora_io::read(path).map_err(|error| {
        let torn = !matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::OutOfMemory);
        let error = TrainError::io(path, error);
        if torn { Damage::Torn(error) } else { Damage::Wrong(error) }
    })
}

fn read_place(path: &Path) -> Result<TrainerState, Damage> {
    let mut fields: Map<String, Value> =
        serde_json::from_slice(&read_file(path)?).map_err(|error| {
            let torn = !error.is_data();
            let error = TrainError::format(path, error.to_string());
            if torn { Damage::Torn(error) } else { Damage::Wrong(error) }
        })?;
    let place = || -> Result<TrainerState, String> {
        if fields.contains_key("same") {
            return Err("an earlier version wrote it, which did not keep all that a run depends \
                        on: begin again in another folder, from its adapter if you like"
                .into());
        }
        let place = TrainerState {
            step: field(&mut fields, "step")?,
            steps: field(&mut fields, "steps")?,
            epoch: field(&mut fields, "epoch")?,
            position: field(&mut fields, "position")?,
            tokens: field(&mut fields, "tokens")?,
            best: field(&mut fields, "best")?,
            not_better: field(&mut fields, "not_better")?,
            plateau: field(&mut fields, "plateau")?,
            run: field(&mut fields, "run")?,
        };
        match fields.keys().next() {
            Some(name) => Err(format!("`{}` is no field of it", burn_lora_io::escaped(name))),
            None => Ok(place),
        }
    };
    let mut place = place;
    place().map_err(|reason| Damage::Wrong(TrainError::format(path, reason)))
}

fn field<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str) -> Result<T, String> {
    let value = fields.remove(name).ok_or_else(|| format!("`{name}` is missing"))?;
    serde_json::from_value(value).map_err(|error| format!("`{name}`: {error}"))
}

/// Returns the model with the parameters of a checkpoint, and the optimizer's tensors.
pub(crate) fn load<M: CausalLm>(
    folder: &Path,
    mut tensors: State,
    model: M,
) -> Result<(M, State), TrainError> {
    let path = folder.join(TENSORS);
    let device = model.device().inner();
    let mut values = Flat::new();
    for param in params::trained(&model) {
        let name = format!("model.{}", param.path);
        let count: usize = param.shape.iter().product();
        let data = tensors.remove(&name).ok_or_else(|| {
            let reason = format!(
                "`{name}` is missing: it is the checkpoint of another adapter; train with its \
                 settings, or into another folder"
            );
            TrainError::format(&path, reason)
        })?;
        let found = (data.dtype(), data.shape().to_vec());
        if found != (DType::F32, vec![count]) {
            let (dtype, shape) = found;
            let reason =
                format!("`{name}` has {shape:?} values in {dtype:?}, the model {count} in F32");
            return Err(TrainError::format(&path, reason));
        }
        values.insert(param.id, Tensor::from_data(data, (&device, DType::F32)));
    }
    if let Some(name) = tensors.keys().find(|name| !name.starts_with(OPTIMIZER)) {
        let name = burn_lora_io::escaped(name);
        let reason = format!("`{name}` is none of the model's trained parameters");
        return Err(TrainError::format(&path, reason));
    }
    let model = params::update(model, values);
    let optimizer = tensors
        .into_iter()
        .filter_map(|(name, data)| Some((name.strip_prefix(OPTIMIZER)?.to_owned(), data)));
    Ok((model, optimizer.collect()))
}

fn write_tensors(path: &Path, tensors: &State) -> Result<(), TrainError> {
    let views = tensors.iter().map(|(name, data)| {
        let dtype = match data.dtype() {
            DType::F32 => Dtype::F32,
            DType::U32 => Dtype::U32,
            DType::U8 => Dtype::U8,
            other => unreachable!("no checkpoint has {other:?}"),
        };
        let shape = data.shape().to_vec();
        (name, TensorView::new(dtype, shape, data.as_bytes()).expect("its own bytes"))
    });
    let bytes = safetensors::serialize(views, None)
        .map_err(|error| TrainError::format(path, error.to_string()))?;
    burn_lora_io::replace(path, &bytes).map_err(|error| TrainError::io(path, error))
}

fn read_tensors(path: &Path) -> Result<State, Damage> {
    let bytes = read_file(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        Damage::Torn(TrainError::format(path, format!("{error}; it may have been cut off")))
    })?;
    let read = |(name, view): (String, TensorView<'_>)| {
        let wrong = |reason: String| {
            let reason = format!("`{}` {reason}", burn_lora_io::escaped(&name));
            Damage::Wrong(TrainError::format(path, reason))
        };
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::U32 => DType::U32,
            Dtype::U8 => DType::U8,
            other => return Err(wrong(format!("is {other:?}, which no checkpoint has"))),
        };
        let values = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        if dtype == DType::F32
            && let Some(value) = values.into_iter().find(|value| !value.is_finite())
        {
            return Err(wrong(format!("has the value {value}: it was damaged; remove it")));
        }
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        Ok((name, data))
    };
    file.tensors().into_iter().map(read).collect()
}
