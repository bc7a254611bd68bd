//! Learning rates that are none are warned of.

use crate::runs::{data, model, small};
use burn_lora_io::collect;
use burn_lora_train::{OptimizerConfig, RunConfig, Sweep, TrainConfig, Trainer};
use std::fs;

/// Warnings of a run of a step about its rate.
fn warned(config: TrainConfig) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { output: Some(folder.path().into()), ..config.max_steps(1) };
    let (_, warnings) = collect(|| Trainer::new(config).fit(&mut model(), &data(0, 4), None));
    warnings.into_iter().filter(|text| text.contains("learning_rate")).collect()
}

fn config(rate: f64) -> TrainConfig {
    TrainConfig { learning_rate: rate, ..small("".as_ref()) }
}

#[test]
fn a_rate_that_is_none_of_adam_is_warned_of_once_a_run() {
    let found = warned(config(1.0));
    assert_eq!(found.len(), 1, "{found:?}");
    for part in ["`learning_rate` is 1:", "adamw", "alpha / rank", "train.learning_rate=2e-4"] {
        assert!(found[0].contains(part), "no `{part}` in: {}", found[0]);
    }
    for optimizer in [
        OptimizerConfig::adamw_8bit(),
        OptimizerConfig::lora_fa(),
        OptimizerConfig::Lion { beta1: 0.9, beta2: 0.99 },
    ] {
        assert_eq!(warned(config(0.1).optimizer(optimizer)).len(), 1, "{optimizer:?}");
    }
    // Steps of SGD are as large as its gradients are.
    assert!(warned(config(1.0).optimizer(OptimizerConfig::Sgd { momentum: 0.9 })).is_empty());
    assert!(warned(config(0.01)).is_empty());
}

/// No default, and no run file or program of ours, is warned of.
#[test]
fn our_own_rates_are_in_the_range_of_lora() {
    let mut rates = vec![
        TrainConfig::default().learning_rate,
        RunConfig::default().train.learning_rate,
        Sweep::default().run.train.learning_rate,
    ];
    let mut files: Vec<_> = ["../../examples/configs", "../../examples", "../../docs"]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.push("../../README.md".into());
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for start in ["TrainConfig::new(", "learning_rate = ", "learning_rate=", "--lr ", "--rate "]
        {
            for (at, _) in text.match_indices(start) {
                let rest = &text[at + start.len()..];
                let numbers =
                    rest.split(|c: char| !(c.is_ascii_alphanumeric() || ".-,".contains(c)));
                let numbers = numbers.take(1).flat_map(|list| list.split(','));
                rates.extend(numbers.filter_map(|number| number.parse::<f64>().ok()));
            }
        }
    }
    assert!(rates.len() > 15, "{rates:?}");
    assert!(rates.iter().all(|rate| *rate <= 0.01), "{rates:?}");
}
