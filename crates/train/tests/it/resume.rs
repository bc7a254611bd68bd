//! What a run that is resumed has to find: the run that it was, and a checkpoint that is whole.

use crate::{
    common::*,
    runs::{data, lora, model, sample, small},
};
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt, Bias, Init, LoraConfig};
use burn_lora_io::collect;
use burn_lora_llama::Llama;
use burn_lora_quant::QuantConfig;
use burn_lora_train::{
    Dataset, Every, OptimizerConfig, Recompute, Schedule, TrainConfig, Trainer, Warmup,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

fn config(output: &Path) -> TrainConfig {
    // The schedule does not depend on the length: runs of two steps and of four are the same.
    small(output).schedule(Schedule::Constant).save(Every::Steps(1)).max_steps(4).epochs(4)
}

/// A run of two steps, whose folder is copied for each test.
fn begun() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = config(folder.path()).max_steps(2);
    Trainer::new(run).fit(&mut model(), &data(0, 8), Some(&data(40, 4))).unwrap();
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn adapter(output: &Path) -> Vec<u8> {
    fs::read(output.join("adapter_model.safetensors")).unwrap()
}

/// What a run goes on with.
struct With {
    model: Llama,
    train: Dataset,
    valid: Dataset,
    config: TrainConfig,
}

/// Goes on from a copy of a folder, after a change: the adapter, or the error, and what was warned of.
fn goes_on(begun: &Path, change: impl FnOnce(&mut With)) -> (Result<Vec<u8>, String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    copy(begun, folder.path());
    let config = config(folder.path());
    let mut with = With { model: model(), train: data(0, 8), valid: data(40, 4), config };
    change(&mut with);
    let With { mut model, train, valid, config } = with;
    let (result, warnings) = collect(|| {
        let trainer = Trainer::new(config).resume(true);
        trainer.fit(&mut model, &train, Some(&valid)).map_err(|error| error.to_string())
    });
    (result.map(|_| adapter(folder.path())), warnings)
}

fn adapted(config: LoraConfig) -> Llama {
    loader(&golden("gqa")).load(&device()).unwrap().with_adapter(&config).unwrap()
}

/// A part of an error, and the change that it is of.
type Change = (&'static str, Box<dyn Fn(&mut With)>);

fn change(name: &'static str, change: impl Fn(&mut With) + 'static) -> Change {
    (name, Box::new(change))
}

fn adapter_is(name: &'static str, config: impl Fn(LoraConfig) -> LoraConfig + 'static) -> Change {
    change(name, move |with| with.model = adapted(config(lora())))
}

fn setting(name: &'static str, set: impl Fn(TrainConfig) -> TrainConfig + 'static) -> Change {
    change(name, move |with| with.config = set(with.config.clone()))
}

#[test]
fn another_run_is_refused_by_what_differs() {
    let begun = begun();
    let changes = [
        adapter_is("adapters.default.lora_alpha", |_| {
            LoraConfig::new(4, 64).all_linear().init(Init::Random).seed(3)
        }),
        adapter_is("adapters.default.r", |_| {
            LoraConfig::new(8, 12).all_linear().init(Init::Random).seed(3)
        }),
        adapter_is("lora_dropout", |lora| lora.dropout(0.5)),
        adapter_is("use_rslora", |lora| lora.rslora(true)),
        adapter_is("use_dora", |lora| lora.dora(true)),
        adapter_is("bias", |lora| lora.bias(Bias::All)),
        adapter_is("target_modules", |lora| lora.targets(["q_proj"])),
        adapter_is("rank_pattern", |lora| lora.rank_pattern([("q_proj", 1)])),
        adapter_is("alpha_pattern", |lora| lora.alpha_pattern([("q_proj", 99.0)])),
        adapter_is("init_lora_weights", |lora| lora.init(Init::Pissa)),
        adapter_is("modules_to_save", |lora| lora.modules_to_save(["lm_head"])),
        change("quantization.model.layers.0", |with| {
            let base = loader(&golden("gqa")).quantize(QuantConfig::nf4());
            with.model = base.load(&device()).unwrap().with_adapter(&lora()).unwrap();
        }),
        change("model.dtype", |with| {
            let base = loader(&golden("gqa")).dtype(FloatDType::F16);
            with.model = base.load(&device()).unwrap().with_adapter(&lora()).unwrap();
        }),
        change("model.config", |with| with.model.config.norm.eps *= 2.0),
        change("model.layers.1.mlp.up_proj", |with| {
            // One value of one weight.
            let mut layers = with.model.layers_mut();
            let (_, layer) =
                layers.iter_mut().find(|(path, _)| path == "model.layers.1.mlp.up_proj").unwrap();
            let weight = layer.weight();
            let other = weight.clone().slice([3..4, 5..6]) + 0.01;
            layer.set_weight(weight.slice_assign([3..4, 5..6], other));
        }),
        change("training data: samples", |with| with.train = data(0, 9)),
        change("training data: tokens and masks", |with| with.train = data(8, 8)),
        change("training data: order", |with| {
            with.train = Dataset::from_samples((0..8).rev().map(sample)).unwrap();
        }),
        change("training data: tokens and masks", |with| {
            let masked = (0..8).map(sample).map(|mut sample| {
                sample.loss_mask[1] = false;
                sample
            });
            with.train = Dataset::from_samples(masked).unwrap();
        }),
        change("validation data: tokens and masks", |with| with.valid = data(41, 4)),
        setting("learning_rate", |run| TrainConfig { learning_rate: 2e-3, ..run }),
        setting("batches.size", |run| run.batch_size(2)),
        setting("batches.seed", |run| {
            let mut run = run;
            run.batches.seed = 9;
            run
        }),
        setting("seed", |run| TrainConfig { seed: 9, ..run }),
        setting("micro-batches a step", |run| run.gradient_accumulation_steps(2)),
        setting("optimizer.name", |run| run.optimizer(OptimizerConfig::adamw_8bit())),
        setting("optimizer.eps", |run| {
            run.optimizer(OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-6 })
        }),
        setting("schedule", |run| run.schedule(Schedule::Cosine)),
        setting("warmup", |run| run.schedule(Schedule::Constant).warmup(Warmup::Ratio(0.0))),
        setting("neftune", |run| run.neftune(5.0)),
        setting("lora_plus", |run| run.lora_plus(16.0)),
        setting("label_smoothing", |run| run.label_smoothing(0.1)),
        setting("max_grad_norm", |run| run.max_grad_norm(0.1)),
        setting("weight_decay", |run| run.weight_decay(0.1)),
    ];
    for (name, change) in changes {
        let (result, _) = goes_on(begun.path(), change);
        let error = result.expect_err(name);
        assert!(error.contains(name), "{name}: {error}");
        assert!(error.contains("checkpoint-2") && error.contains(" was "), "{name}: {error}");
    }
}

#[test]
fn what_changes_nothing_may_change() {
    let begun = begun();
    let (expected, warnings) = goes_on(begun.path(), |_| {});
    assert!(warnings.is_empty(), "{warnings:?}");
    let expected = expected.unwrap();
    for (name, change) in [
        setting("save", |run| run.save(Every::Epochs(1)).save_total_limit(7)),
        setting("log_steps", |run| TrainConfig { log_steps: 3, ..run }),
        setting("evaluate", |run| run.evaluate(Every::Steps(1)).load_best_at_end(false)),
        setting("recompute", |run| run.recompute(Recompute::Every(2)).offload(true)),
        setting("epochs", |run| run.epochs(40)),
        adapter_is("base_model", |lora| lora.base_model("somewhere/else")),
    ] {
        let (result, warnings) = goes_on(begun.path(), change);
        assert!(result.unwrap_or_else(|error| panic!("{name}: {error}")) == expected, "{name}");
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
    }
}

#[test]
fn another_length_changes_the_schedule_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let run = |steps| small(folder.path()).max_steps(steps).epochs(4);
    Trainer::new(run(2)).fit(&mut model(), &data(0, 8), None).unwrap();
    let trainer = Trainer::new(run(4)).resume(true);
    let (result, warnings) = collect(|| trainer.fit(&mut model(), &data(0, 8), None));
    result.unwrap();
    let warned = warnings.iter().any(|text| text.contains("2 steps") && text.contains('4'));
    assert!(warned, "{warnings:?}");
}

/// An initialisation that takes a part out of the base makes the same base again.
#[test]
fn a_base_that_gave_up_a_part_is_the_same_again() {
    for init in [Init::Pissa, Init::Loftq { iterations: 1, config: QuantConfig::nf4() }] {
        let folder = tempfile::tempdir().unwrap();
        let model = || adapted(LoraConfig::new(4, 12).all_linear().init(init.clone()));
        let run = |steps| config(folder.path()).max_steps(steps);
        Trainer::new(run(2)).fit(&mut model(), &data(0, 8), None).unwrap();
        let trainer = Trainer::new(run(3)).resume(true);
        let (result, warnings) = collect(|| trainer.fit(&mut model(), &data(0, 8), None));
        result.unwrap();
        assert!(warnings.is_empty(), "{init:?}: {warnings:?}");
    }
}

fn newest(folder: &Path, file: &str) -> PathBuf {
    folder.join("checkpoint-2").join(file)
}

#[test]
fn a_checkpoint_that_is_not_whole_is_skipped_and_kept_aside() {
    let begun = begun();
    fn cut(path: &Path) {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }
    type Tear = dyn Fn(&Path);
    let tears: [(&str, &Tear); 7] = [
        ("no state", &|folder| fs::remove_file(newest(folder, "trainer_state.json")).unwrap()),
        ("no tensors", &|folder| {
            fs::remove_file(newest(folder, "training_state.safetensors")).unwrap();
        }),
        ("state cut off", &|folder| cut(&newest(folder, "trainer_state.json"))),
        ("tensors cut off", &|folder| cut(&newest(folder, "training_state.safetensors"))),
        ("an empty state", &|folder| fs::write(newest(folder, "trainer_state.json"), "").unwrap()),
        ("an empty folder", &|folder| {
            fs::remove_dir_all(folder.join("checkpoint-2")).unwrap();
            fs::create_dir(folder.join("checkpoint-2")).unwrap();
        }),
        ("a file", &|folder| {
            fs::remove_dir_all(folder.join("checkpoint-2")).unwrap();
            fs::write(folder.join("checkpoint-2"), "x").unwrap();
        }),
    ];
    let (expected, _) = goes_on(begun.path(), |_| {});
    let expected = expected.unwrap();
    for (name, tear) in tears {
        let folder = tempfile::tempdir().unwrap();
        copy(begun.path(), folder.path());
        tear(folder.path());
        let trainer = Trainer::new(config(folder.path())).resume(true);
        let fit = || trainer.fit(&mut model(), &data(0, 8), Some(&data(40, 4)));
        let (result, warnings) = collect(fit);
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let warned = warnings.iter().any(|text| {
            text.contains("checkpoint-2") && text.contains("from") && text.contains("checkpoint-1")
        });
        assert!(warned, "{name}: {warnings:?}");
        assert!(folder.path().join("checkpoint-2.torn").exists(), "{name}");
        assert!(adapter(folder.path()) == expected, "{name}");
    }
    // If none is whole there is nothing to go on from.
    let (result, _) = {
        let folder = tempfile::tempdir().unwrap();
        copy(begun.path(), folder.path());
        for step in [1, 2] {
            let file = format!("checkpoint-{step}/trainer_state.json");
            fs::remove_file(folder.path().join(file)).unwrap();
        }
        goes_on(folder.path(), |_| {})
    };
    let error = result.unwrap_err();
    assert!(error.contains("no checkpoint here is whole"), "{error}");
}

#[test]
fn only_checkpoints_count_as_checkpoints() {
    let begun = begun();
    for name in ["checkpoint-+9", "checkpoint-09", "checkpoint-99999999999999999999"] {
        fs::create_dir(begun.path().join(name)).unwrap();
    }
    let (result, warnings) = goes_on(begun.path(), |_| {});
    result.unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_state_that_cannot_be_is_refused_by_file_and_field() {
    let begun = begun();
    let most = u64::MAX;
    for (field, value) in [
        ("step", json!(most)),
        ("step", json!(-1)),
        ("step", json!(1)),
        ("step", json!(0)),
        ("step", json!("two")),
        ("position", json!(most)),
        ("position", json!(5)),
        ("epoch", json!(most)),
        ("epoch", json!(1u64 << 62)),
        ("tokens", json!(most)),
        ("tokens", json!(0)),
        ("best", json!([2, null])),
        ("best", json!([77, 1.0])),
        ("best", json!([0, 1.0])),
        ("not_better", json!(most)),
        ("plateau", json!({"rate": -1e308, "best": null, "bad": most, "cooldown": most})),
        ("plateau", json!({"rate": 1e-3, "best": 1.0, "bad": 0, "cooldown": 0})),
        ("run", json!({})),
        ("run", json!(null)),
        ("zzz", json!(1)),
        ("same", json!({})),
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy(begun.path(), folder.path());
        let path = newest(folder.path(), "trainer_state.json");
        let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        state[field] = value.clone();
        fs::write(&path, state.to_string()).unwrap();
        let error = goes_on(folder.path(), |_| {}).0.expect_err(field);
        let named = error.contains(field) || field == "same" && error.contains("earlier version");
        assert!(named && error.contains("checkpoint-2"), "{field} = {value}: {error}");
    }
}

#[test]
fn tensors_that_cannot_be_are_refused_by_file_and_name() {
    let begun = begun();
    let path = newest(begun.path(), "training_state.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names: Vec<String> = file.names().into_iter().map(|name| name.to_string()).collect();
    let first = |part: &str, end: &str| {
        let mut found = names.iter().filter(|name| name.starts_with(part) && name.ends_with(end));
        found.next().unwrap().clone()
    };
    let (weight, moment) = (first("model.", ""), first("optimizer.", ".v"));
    type Tensor = (safetensors::Dtype, Vec<usize>, Vec<u8>);
    type Tamper<'a> = Box<dyn Fn(&mut std::collections::BTreeMap<String, Tensor>) + 'a>;
    let set = |name: &String, at: usize, value: f32| -> Tamper<'_> {
        let name = name.clone();
        Box::new(move |all| {
            let (_, _, bytes) = all.get_mut(&name).unwrap();
            bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        })
    };
    let cases: Vec<(&str, Tamper<'_>)> = vec![
        (&weight, set(&weight, 1, f32::NAN)),
        (&weight, set(&weight, 0, f32::INFINITY)),
        (&moment, set(&moment, 2, f32::NAN)),
        (moment.strip_prefix("optimizer.").unwrap(), set(&moment, 2, -1.0)),
        (&weight, Box::new(|all| drop(all.remove(&weight)))),
        (moment.strip_prefix("optimizer.").unwrap(), Box::new(|all| drop(all.remove(&moment)))),
        (&weight, Box::new(|all| all.get_mut(&weight).unwrap().0 = safetensors::Dtype::U32)),
        (
            &weight,
            Box::new(|all| {
                let (_, shape, _) = all.get_mut(&weight).unwrap();
                *shape = vec![2, shape[0] / 2];
            }),
        ),
        (
            "zzz",
            Box::new(|all| {
                all.insert("zzz".into(), (safetensors::Dtype::F32, vec![1], vec![0; 4]));
            }),
        ),
    ];
    for (name, tamper) in cases {
        let mut all: std::collections::BTreeMap<String, Tensor> = file
            .iter()
            .map(|(name, view)| {
                (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            })
            .collect();
        tamper(&mut all);
        let views = all.iter().map(|(name, (dtype, shape, bytes))| {
            (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let changed = safetensors::serialize(views, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        copy(begun.path(), folder.path());
        fs::write(newest(folder.path(), "training_state.safetensors"), changed).unwrap();
        let error = goes_on(folder.path(), |_| {}).0.expect_err(name);
        assert!(error.contains(name) && error.contains("checkpoint-2"), "{name}: {error}");
    }
}
