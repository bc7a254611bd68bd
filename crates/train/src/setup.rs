//! Preparation of a run, before its first step.

use crate::{
    TrainConfig, TrainError,
    config::MOST_STEPS,
    data::Dataset,
    params::{self, Trained},
};
use burn::{
    module::ParamId,
    tensor::{DType, Device, Tensor},
};
use burn_lora_adapter::{AdaptableExt, AdapterError, ParamGroups};
use burn_lora_llama::CausalLm;
use std::collections::{HashMap, HashSet};

/// Returns the number of optimizer steps of an epoch, and of the whole run.
pub(crate) fn steps(
    config: &TrainConfig,
    train: &Dataset,
    micro_batches_a_step: usize,
) -> Result<(usize, usize), TrainError> {
    // All epochs have the same number: packing sorts the samples by length, and depends on nothing
    // else.
    let of_epoch = train.epoch(&config.batches, 0)?.len().div_ceil(micro_batches_a_step);
    if of_epoch == 0 {
        let reason = "the data give no batch: there are no samples, or `drop_last` drops all";
        return Err(TrainError::setting("data", "empty", reason));
    }
    let most = config.max_steps.unwrap_or(usize::MAX);
    let last = (of_epoch as f64 * config.epochs.fract()).ceil();
    let steps = config.epochs.trunc() * of_epoch as f64 + last;
    // Saturates.
    let steps = (steps as usize).min(most);
    if steps > MOST_STEPS {
        let reason = format!(
            "with {of_epoch} steps an epoch these are more steps than a run can have, \
             {MOST_STEPS}; `max_steps` limits it"
        );
        return Err(TrainError::setting("epochs", format!("{:?}", config.epochs), reason));
    }
    Ok((of_epoch, steps))
}

/// Returns `true` if the device is a CUDA device.
pub(crate) fn is_cuda(device: &Device) -> bool {
    #[cfg(feature = "cubecl")]
    {
        use burn::backend::{BackendTypes, Dispatch};
        type AnyDevice = <Dispatch as BackendTypes>::Device;
        matches!(device.clone().inner().as_dispatch(), AnyDevice::Cube(cubecl::Device::Cuda(_)))
    }
    #[cfg(not(feature = "cubecl"))]
    {
        let _ = device;
        false
    }
}

/// Returns `true` if the device computes while the host goes on: a GPU.
pub(crate) fn is_gpu(device: &Device) -> bool {
    #[cfg(feature = "cubecl")]
    {
        burn_lora_kernels::cube::client(device).is_some()
    }
    #[cfg(not(feature = "cubecl"))]
    {
        let _ = device;
        false
    }
}

/// Learning rate factor (LoRA+) and weight decay (none for biases and norms) of each parameter.
pub(crate) fn groups<M: CausalLm>(
    config: &TrainConfig,
    model: &M,
    params: &[Trained],
) -> HashMap<ParamId, (f64, f64)> {
    let mut fast: Vec<ParamId> = Vec::new();
    if config.lora_plus.is_some() {
        for name in model.adapter_names() {
            let groups = model.param_groups(&name).expect("the model has named it");
            fast.extend([groups.b, groups.magnitude, groups.bias].concat());
        }
    }
    let group = |param: &Trained| {
        let ratio = if fast.contains(&param.id) { config.lora_plus.unwrap_or(1.0) } else { 1.0 };
        let decays = !param.path.split('.').any(|part| part == "bias" || part.contains("norm"));
        (param.id, (ratio, if decays { config.weight_decay } else { 0.0 }))
    };
    params.iter().map(group).collect()
}

/// Names of the adapters whose parameters are trained.
fn trained_adapters<M: CausalLm>(model: &M) -> Vec<String> {
    let trained: HashSet<_> = params::trained(model).into_iter().map(|param| param.id).collect();
    let mut names = model.adapter_names();
    names.retain(|name| {
        let groups = model.param_groups(name).expect("the model has named it");
        let ParamGroups { a, b, magnitude, embedding, saved, other, .. } = groups;
        let mut all = [a, b, magnitude, embedding, saved, other].concat().into_iter();
        all.any(|id| trained.contains(&id))
    });
    names
}

/// Freezes A of the trained adapters.
pub(crate) fn freeze_a<M: CausalLm>(model: &mut M) -> Result<(), AdapterError> {
    trained_adapters(model).iter().try_for_each(|name| model.freeze_a(name))
}

/// LoRA-FA's factors of the trained adapters.
pub(crate) fn lora_fa<M: CausalLm>(
    model: &M,
    device: &Device,
) -> Result<HashMap<ParamId, Tensor<2>>, TrainError> {
    let mut all = HashMap::new();
    for name in trained_adapters(model) {
        let factors = model.lora_fa(&name)?.into_iter();
        all.extend(factors.map(|(id, f)| (id, Tensor::from_data(f, (device, DType::F32)))));
    }
    Ok(all)
}

/// Seed of a micro-batch (the finaliser of SplitMix64).
pub(crate) fn mix(seed: u64, step: u64, number: u64) -> u64 {
    let mut z = seed
        .wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(number.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
