//! What is settled before the first step of a run.

use crate::{TrainConfig, TrainError, data::Dataset, model::CausalLm, params::Trained};
use burn::module::ParamId;
use std::collections::{BTreeMap, HashMap};

/// Optimizer steps of the whole run. Packing may fill another number of rows each epoch.
pub(crate) fn total_steps(
    config: &TrainConfig,
    train: &Dataset,
    micro_batches_a_step: usize,
) -> Result<usize, TrainError> {
    let most = config.max_steps.unwrap_or(usize::MAX);
    let (mut steps, mut left, mut epoch) = (0usize, config.epochs, 0);
    while left > 0.0 && steps < most {
        let micro_batches = train.epoch(&config.batches, epoch)?.len();
        let of_epoch = micro_batches.div_ceil(micro_batches_a_step);
        if of_epoch == 0 {
            let reason = "the data give no batch: there are no samples, or `drop_last` drops all";
            return Err(TrainError::setting("data", "empty", reason));
        }
        steps += (of_epoch as f64 * left.min(1.0)).ceil() as usize;
        left -= 1.0;
        epoch += 1;
    }
    Ok(steps.min(most))
}

/// What a run that goes on has to share with the one that began.
pub(crate) fn same(
    config: &TrainConfig,
    train: &Dataset,
    micro_batches: usize,
) -> BTreeMap<String, String> {
    let json = |value: serde_json::Value| value.to_string();
    let config = serde_json::to_value(config).expect("settings are plain values");
    let names = [
        "batches",
        "label_smoothing",
        "learning_rate",
        "lora_plus",
        "max_grad_norm",
        "neftune",
        "optimizer",
        "schedule",
        "seed",
        "warmup",
        "weight_decay",
    ];
    let mut same: BTreeMap<_, _> =
        names.iter().map(|name| ((*name).to_owned(), json(config[*name].clone()))).collect();
    same.insert("samples".to_owned(), train.len().to_string());
    same.insert("micro-batches a step".to_owned(), micro_batches.to_string());
    same
}

/// The groups of parameters: LoRA+'s rates, and no decay for biases and norms.
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

/// A seed of its own for each micro-batch (the finaliser of SplitMix64).
pub(crate) fn mix(seed: u64, step: u64, number: u64) -> u64 {
    let mut z = seed
        .wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(number.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
