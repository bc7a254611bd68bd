//! `burn-lora sweep`.

use crate::commands::{run, small_model};
use std::{fs, path::Path};

#[test]
fn wrong_options_of_a_sweep_say_what_to_do() {
    let given = ["sweep", "--model", "m", "--data", "d", "--output", "o", "--valid-split", "0.1"];
    let rank = ["--over", "adapter.r=8,16"];
    for (more, part) in [
        (vec![], "`over` is not set: name a setting and the values to try"),
        (vec![], "(--over NAME=VALUE,VALUE)"),
        (vec!["--over", "adapter.r"], "--over adapter.r: it has to be NAME=VALUE,VALUE"),
        (vec!["--over", "adapter.rnk=8"], "adapter.rnk: unknown field `rnk`"),
        (vec!["--over", "adapter.r=8,8"], "r=8 is there twice"),
        (vec!["--over", "train.output=a,b"], "a folder of its own"),
        ([&rank[..], &["--factor", "2"]].concat(), "go with --strategy halving"),
        ([&rank[..], &["--strategy", "halving", "--factor", "1"]].concat(), "`factor` is 1"),
        ([&rank[..], &["--min-gain", "2"]].concat(), "`min_gain` is 2"),
    ] {
        let error = run(&[&given[..], &more].concat()).unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    let error = run(&[&given[..7], &rank].concat()).unwrap_err();
    assert!(error.contains("a sweep compares validation losses"), "{error}");
    let found = run(&[&given[..], &rank, &["--dry-run"]].concat()).unwrap();
    assert_eq!(found, "2 trials:\n  r=8\n  r=16\n");
}

#[test]
fn a_sweep_is_a_table_a_picture_and_json_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    let words = [
        &["sweep", "--model", &model, "--data", &data, "--output", &out, "--device", "cpu"][..],
        &["--valid-split", "0.2", "--batch-size", "4", "--gradient-accumulation-steps", "1"],
        &["--max-length", "64", "--max-steps", "9"],
        &["--over", "adapter.r=2,4", "--over", "train.learning_rate=1e-4,1e-2"],
    ];
    let words = words.concat();
    let halving = ["--strategy", "halving", "--factor", "2", "--min-steps", "3"];
    let found = run(&[&words[..], &halving].concat()).unwrap();
    for part in ["| r | learning_rate |", "halted of 9", "finished", "The lowest validation loss: "]
    {
        assert!(found.contains(part), "no `{part}` in: {found}");
    }
    let best = found.split("The lowest validation loss: ").nth(1).unwrap().lines().next().unwrap();
    assert!(best.ends_with("learning_rate=0.01"), "{found}");
    assert!(Path::new(&out).join(best).join("adapter_model.safetensors").exists());
    assert!(Path::new(&out).join("sweep.svg").exists());

    // Again, there is nothing to train; as a file of a sweep it is the same.
    let time = |name: &str| {
        let file = Path::new(&out).join(name).join("adapter_model.safetensors");
        fs::metadata(file).unwrap().modified().unwrap()
    };
    let before = time(best);
    let found = run(&[&words[..], &halving, &["--json"]].concat()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(json["best"], best);
    assert_eq!(json["trials"].as_array().unwrap().len(), 4);
    assert!(json["trials"][0]["loss"].as_f64() < json["trials"][1]["loss"].as_f64());
    assert_eq!(time(best), before);

    let file = folder.path().join("sweep.toml");
    let text = "strategy = { halving = { factor = 2, min_steps = 3 } }\n\
        [[over]]\nname = 'adapter.r'\nvalues = [2, 4]\n\
        [[over]]\nname = 'train.learning_rate'\nvalues = [1e-4, 1e-2]\n";
    fs::write(&file, text).unwrap();
    let at = words.iter().position(|word| *word == "--over").unwrap();
    let by_file = [&words[..at], &["--sweep", file.to_str().unwrap(), "--json"]].concat();
    assert_eq!(run(&by_file).unwrap(), found);

    // Another setting is another sweep.
    let error = run(&[&words[..], &["--set", "train.label_smoothing=0.1"]].concat()).unwrap_err();
    assert!(error.contains("`train.label_smoothing` was 0.0 and is 0.1"), "{error}");
}

/// Ctrl-C ends the trial with a checkpoint, and the same command goes on from there.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_sweep_that_goes_on() {
    use crate::burn_lora;
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    let words = |epochs: &'static str| {
        vec![
            "sweep",
            "--model",
            &model,
            "--data",
            &data,
            "--output",
            &out,
            "--device",
            "cpu",
            "--valid-split",
            "0.2",
            "--set",
            "train.log_steps=1",
            "--epochs",
            epochs,
            "--over",
            "adapter.r=2,4",
        ]
    };
    let mut command = burn_lora(words("100000"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let metrics = Path::new(&out).join("r=2/metrics.jsonl");
    // It trains: there is a line of the log.
    while !fs::read_to_string(&metrics).is_ok_and(|text| text.contains('\n')) {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("r=2"));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8_lossy(&output.stdout);
    for part in ["interrupted of", "Not tried: r=4", "The same command goes on."] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    let checkpoints = fs::read_dir(Path::new(&out).join("r=2")).unwrap();
    let names = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().any(|name| name.starts_with("checkpoint-")));
}
