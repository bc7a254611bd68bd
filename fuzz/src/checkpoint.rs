//! The state in a checkpoint, from which a run goes on.

use crate::{files, folder, input, model, read};
use burn_lora::{prelude::*, train::data::Sample};
use serde_json::json;
use std::{fs, path::Path, sync::LazyLock};

const STATE: &str = "trainer_state.json";
const TENSORS: &str = "training_state.safetensors";

/// Three steps, of which the second is in the checkpoint.
fn fit(output: &Path, optimizer: OptimizerConfig, steps: usize) -> Result<Report, TrainError> {
    static MODEL: LazyLock<Llama> = LazyLock::new(|| {
        model(json!({"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}))
            .with_adapter(&LoraConfig::new(1, 2).targets(["q_proj"]))
            .expect("there is such a layer")
    });
    static DATA: LazyLock<Dataset> = LazyLock::new(|| {
        let sample = |start: u32| Sample { ids: vec![start, 1, 2], loss_mask: vec![true; 3] };
        Dataset::from_samples((0..3).map(sample)).expect("it is right")
    });
    let config = TrainConfig::new(1e-3)
        .epochs(1)
        .max_steps(steps)
        .optimizer(optimizer)
        .schedule(Schedule::Cosine)
        .evaluate(Every::Steps(1))
        .save(Every::Steps(1))
        .early_stopping(EarlyStopping { patience: 9, threshold: 0.0 })
        .output(output);
    Trainer::new(config).resume(true).fit(&mut MODEL.clone(), &DATA, &*DATA)
}

pub(crate) fn run(data: &[u8]) {
    let [state, tensors] = files(data);
    let output = folder("run", &[]);
    let checkpoint = output.join("checkpoint-2");
    fs::create_dir(&checkpoint).expect("a folder can be made");
    fs::write(checkpoint.join(STATE), state).expect("a file can be written");
    fs::write(checkpoint.join(TENSORS), tensors).expect("a file can be written");
    let eight = data.len().is_multiple_of(2);
    let optimizer = if eight { OptimizerConfig::adamw_8bit() } else { OptimizerConfig::adamw() };
    let _ = fit(&output, optimizer, 3);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |optimizer: OptimizerConfig| {
        let output = folder("run", &[]);
        fit(&output, optimizer, 2).unwrap();
        let checkpoint = output.join("checkpoint-2");
        input([read(&checkpoint, STATE), read(&checkpoint, TENSORS)])
    };
    [OptimizerConfig::adamw(), OptimizerConfig::adamw_8bit()].map(seed).into()
}
