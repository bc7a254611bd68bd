//! Checkpoints: all that a run needs to go on as if it had not been stopped.
//!
//! A checkpoint is a folder `checkpoint-STEP` with the adapter as PEFT reads it, the exact values of
//! all trained parameters and the optimizer in `training_state.safetensors`, and the rest in
//! `trainer_state.json`. It is written under another name and renamed, so that one that is there is
//! whole, whenever the process was killed.

use crate::{
    TrainError,
    model::CausalLm,
    optim::State,
    params::{self, Flat},
    schedule::Plateau,
};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const PREFIX: &str = "checkpoint-";
const UNFINISHED: &str = ".unfinished-";
const STATE: &str = "trainer_state.json";
pub(crate) const TENSORS: &str = "training_state.safetensors";

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Optimizer steps done.
    pub step: usize,
    /// The epoch of the next step, from 0.
    pub epoch: usize,
    /// Steps of that epoch that are done.
    pub position: usize,
    /// Tokens gone through.
    pub tokens: u64,
    /// The step with the best validation loss, and the loss.
    pub best: Option<(usize, f64)>,
    /// Evaluations since then.
    pub not_better: usize,
    pub plateau: Plateau,
    /// What has to be the same when the run goes on, by name.
    pub same: BTreeMap<String, String>,
}

pub(crate) fn folder_of(output: &Path, step: usize) -> PathBuf {
    output.join(format!("{PREFIX}{step}"))
}

/// The checkpoints of a run by their steps.
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
        if let Some(step) = name.strip_prefix(PREFIX).and_then(|step| step.parse().ok()) {
            found.insert(step, path);
        }
    }
    Ok(found)
}

/// Writes a checkpoint, and removes all but the last `limit` and the best.
pub(crate) fn save<M: CausalLm>(
    output: &Path,
    model: &M,
    optimizer: State,
    progress: &Place,
    limit: usize,
) -> Result<PathBuf, TrainError> {
    fs::create_dir_all(output).map_err(|error| TrainError::io(output, error))?;
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(output)
        .map_err(|error| TrainError::io(output, error))?;
    model.save_trained(unfinished.path())?;

    let mut tensors: State = params::values(model)
        .into_iter()
        .map(|(path, value)| (format!("model.{path}"), params::own(value.into_data())))
        .collect();
    tensors.extend(optimizer.into_iter().map(|(name, data)| (format!("optimizer.{name}"), data)));
    let path = unfinished.path().join(TENSORS);
    write_tensors(&path, &tensors)?;
    let json = serde_json::to_vec_pretty(progress).expect("it has no other keys than strings");
    write(&unfinished.path().join(STATE), &json)?;

    let folder = folder_of(output, progress.step);
    if folder.exists() {
        remove(output, &folder)?;
    }
    let written = unfinished.keep();
    fs::rename(&written, &folder).map_err(|error| TrainError::io(&folder, error))?;
    fs::File::open(output).and_then(|folder| folder.sync_all()).ok();

    let mut others: Vec<_> = list(output)?.into_iter().collect();
    others.retain(|(step, _)| progress.best.is_none_or(|(best, _)| best != *step));
    let surplus = others.len().saturating_sub(limit.max(1));
    for (_, path) in others.into_iter().take(surplus) {
        remove(output, &path)?;
    }
    Ok(folder)
}

/// Removes a checkpoint, which no longer counts as one while its files go.
fn remove(output: &Path, folder: &Path) -> Result<(), TrainError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let going = output.join(format!("{UNFINISHED}{name}"));
    fs::remove_dir_all(&going).ok();
    fs::rename(folder, &going)
        .and_then(|()| fs::remove_dir_all(&going))
        .map_err(|error| TrainError::io(folder, error))
}

/// Removes what a killed process left half written.
pub(crate) fn tidy(output: &Path) {
    let Ok(entries) = fs::read_dir(output) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(UNFINISHED) {
            fs::remove_dir_all(&path).ok();
        }
    }
}

/// The place of a checkpoint.
pub(crate) fn progress(folder: &Path) -> Result<Place, TrainError> {
    let path = folder.join(STATE);
    let bytes = fs::read(&path).map_err(|error| TrainError::io(&path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| TrainError::format(&path, error.to_string()))
}

/// The model with the parameters of a checkpoint, and the optimizer's tensors.
pub(crate) fn load<M: CausalLm>(folder: &Path, model: M) -> Result<(M, State), TrainError> {
    let path = folder.join(TENSORS);
    let mut tensors = read_tensors(&path)?;
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
        if data.num_elements() != count {
            let found = data.num_elements();
            let reason = format!("`{name}` has {found} values, the model {count}");
            return Err(TrainError::format(&path, reason));
        }
        values.insert(param.id, Tensor::from_data(data, (&device, DType::F32)));
    }
    if let Some(name) = tensors.keys().find(|name| name.starts_with("model.")) {
        let reason = format!("`{name}` is none of the model's trained parameters");
        return Err(TrainError::format(&path, reason));
    }
    let model = params::update(model, |id, _| values.remove(&id).expect("one for each"));
    let optimizer = tensors
        .into_iter()
        .filter_map(|(name, data)| Some((name.strip_prefix("optimizer.")?.to_owned(), data)));
    Ok((model, optimizer.collect()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    use std::io::Write;
    let mut file = fs::File::create(path).map_err(|error| TrainError::io(path, error))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|error| TrainError::io(path, error))
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
    write(path, &bytes)
}

fn read_tensors(path: &Path) -> Result<State, TrainError> {
    let bytes = fs::read(path).map_err(|error| TrainError::io(path, error))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| TrainError::format(path, format!("{error}; it may have been cut off")))?;
    let read = |(name, view): (String, TensorView<'_>)| {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::U32 => DType::U32,
            Dtype::U8 => DType::U8,
            other => {
                let reason = format!("`{name}` is {other:?}, which no checkpoint has");
                return Err(TrainError::format(path, reason));
            }
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        Ok((name, data))
    };
    file.tensors().into_iter().map(read).collect()
}
