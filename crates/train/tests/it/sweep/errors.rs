//! What is wrong with a sweep shows before anything is trained, and says what to do.

use super::{Place, run};
use burn_lora_train::{
    Interrupt, RunConfig,
    sweep::{Axis, Strategy, Sweep},
};
use std::fs;

/// A sweep of runs whose files need not be there.
fn named(axes: &[&str]) -> Sweep {
    let settings = ["model.path=m", "data.files=['d']", "data.valid_split=0.1", "train.output=o"];
    let run = settings
        .iter()
        .fold(RunConfig::default(), |run, setting| run.with_setting(setting).unwrap());
    let axes = axes.iter().map(|axis| axis.parse::<Axis>().unwrap());
    axes.fold(Sweep::new(run), Sweep::over)
}

#[test]
fn wrong_settings_say_what_to_do() {
    let rank = "adapter.r=8,16";
    let without = |setting: &str| {
        let mut sweep = named(&[rank]);
        sweep.run = sweep.run.with_setting(setting).unwrap();
        sweep
    };
    let halving =
        |factor, min_steps| named(&[rank]).strategy(Strategy::Halving { factor, min_steps });
    let no_output = {
        let mut sweep = named(&[rank]);
        sweep.run.train.output = None;
        sweep
    };
    for (sweep, part) in [
        (named(&[]), "`over` is not set: name a setting"),
        (named(&["adapter.rank=8,16"]), "adapter.rank: unknown field `rank`"),
        (named(&["train.learning_rte=1e-4"]), "(nearest: `learning_rate`)"),
        (named(&["adapter.r=8,eight"]), "adapter.r: "),
        (named(&["adapter.r=8,16,8"]), "r=8 is there twice: leave one out"),
        (named(&["train.learning_rate=1e-4,0.0001"]), "learning_rate=1e-4 is there twice"),
        (named(&[rank, "adapter.r=32"]), "adapter.r: it is named twice"),
        (named(&["train.output=a,b"]), "train.output: each trial has a folder of its own"),
        (named(&["adapter.r=8,0"]), "trial r=0: [adapter]: "),
        (named(&["train.epochs=1,-1"]), "trial epochs=-1: [train]: `epochs`"),
        (without("data.valid_split=0.0"), "a sweep compares validation losses"),
        (without("model.adapter=earlier"), "`model.adapter` is set"),
        (no_output, "`train.output` is not set"),
        (named(&[rank]).min_gain(1.5), "`min_gain` is 1.5: it is a fraction"),
        (named(&[rank]).min_gain(f64::NAN), "`min_gain` is NaN"),
        (halving(3, None).min_gain(0.1), "goes with the strategy `grid`"),
        (halving(1, None), "`factor` is 1: it has to be 2 or more"),
        (halving(3, Some(0)), "`min_steps` is 0"),
    ] {
        let error = sweep.trials().unwrap_err().to_string();
        assert!(error.contains(part), "no `{part}` in: {error}");
        assert_eq!(run(&sweep).unwrap_err().to_string(), error);
    }
    assert!(!std::path::Path::new("o").exists());
}

#[test]
fn files_of_sweeps_say_where_they_are_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.toml");
    for (text, parts) in [
        ("[[over]]\nname = 'adapter.r'\n", ["line 1", "values"]),
        ("[[over]]\nname = 'adapter.r'\nvalues = []\n", ["line", "no values to try"]),
        ("stratgy = 'grid'\n", ["line 1", "(nearest: `strategy`)"]),
        ("strategy = 'gird'\n", ["line 1", "(nearest: `grid`)"]),
        ("[run.train]\nlearning_rte = 1\n", ["line 2", "(nearest: `learning_rate`)"]),
    ] {
        fs::write(&file, text).unwrap();
        let error = Sweep::from_file(&file).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "no `{part}` in: {error}"));
    }
    fs::write(
        &file,
        "min_gain = 0.01\n\
         [[over]]\nname = 'train.learning_rate'\nvalues = [1e-4, 2e-4]\n\
         [[over]]\nnames = ['adapter.r', 'adapter.lora_alpha']\nvalues = [[8, 16], [16, 32]]\n\
         [run.model]\npath = 'm'\n",
    )
    .unwrap();
    let sweep = Sweep::from_file(&file).unwrap();
    // What the file does not name is the default of a run.
    let run = RunConfig::default().with_setting("model.path=m").unwrap();
    let expected = Sweep::new(run)
        .over(Axis::new("train.learning_rate", [1e-4, 2e-4]).unwrap())
        .over(Axis::together(["adapter.r", "adapter.lora_alpha"], [(8, 16), (16, 32)]).unwrap())
        .min_gain(0.01);
    assert_eq!(sweep, expected);
}

#[test]
fn a_sweep_goes_on_with_what_it_began_with() {
    let place = Place::new();
    let sweep = place.sweep("out", &["adapter.r=2,4"]);
    run(&sweep).unwrap();
    let changed = |setting: &str| {
        let mut sweep = sweep.clone();
        sweep.run = sweep.run.with_setting(setting).unwrap();
        run(&sweep).map_err(|error| error.to_string())
    };
    for (setting, part) in [
        ("train.epochs=3", "trial r=2: `train.epochs` was 2.0 and is 3.0"),
        ("train.learning_rate=1e-4", "`train.learning_rate` was 0.001"),
        ("adapter.lora_alpha=8", "`adapter.lora_alpha` was 32.0"),
        ("data.valid_split=0.5", "`data.valid_split` was 0.25"),
        ("model.format=none", "`model.format` was nf4 and is none"),
    ] {
        let error = changed(setting).unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
        assert!(error.contains("set it back, or write into another folder"), "{error}");
    }
    // What makes no difference may change.
    for setting in ["train.log_steps=5", "train.save={ steps = 2 }", "memory_budget=24 GiB"] {
        changed(setting).unwrap();
    }
    // Other data under the same name.
    place.write_data(12);
    let error = run(&sweep).unwrap_err().to_string();
    assert!(error.contains("training data: samples` was 12 and is 9"), "{error}");
    place.write_data(16);
    // Another base: it shows when it is read, for a trial that is new.
    place.write_model(2);
    let more = place.sweep("out", &["adapter.r=2,4,8"]);
    let error = run(&more).unwrap_err().to_string();
    assert!(error.contains("`weights of the base` was"), "{error}");
    place.write_model(1);
    run(&more).unwrap();

    // A file of results that is none, and a folder that another sweep writes into.
    let results = place.path().join("out/results.json");
    fs::write(&results, "{").unwrap();
    let error = run(&more).unwrap_err().to_string();
    assert!(error.contains("results.json") && error.contains("remove the file"), "{error}");
    fs::remove_file(&results).unwrap();
    let claimed = place.run("out");
    let _trainer = claimed.trainer().unwrap().resume(true).claim().unwrap();
    let error = more.run(&mut (), &Interrupt::default()).unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
}
