//! Whole runs as settings: files, layers, checks.

use crate::common::{device, golden};
use burn_lora_adapter::{AdaptableExt, Init, LoraConfig, saved_method};
use burn_lora_llama::{Llama, LlamaConfig};
use burn_lora_quant::WeightFormat;
use burn_lora_train::{
    Every, MemoryPlan, OptimizerConfig, Recompute, RunConfig, TrainError, Warmup,
};
use std::{fs, path::PathBuf};

fn run_files() -> Vec<PathBuf> {
    let files = fs::read_dir("../../examples/configs").unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

/// A run with these settings.
fn with<'a>(settings: impl IntoIterator<Item = &'a str>) -> RunConfig {
    settings.into_iter().fold(RunConfig::default(), |run, setting| {
        run.with_setting(setting).unwrap_or_else(|error| panic!("{error}"))
    })
}

const GIVEN: [&str; 3] = ["model.path=m", "data.files=['d']", "train.output=o"];

#[test]
fn run_files_are_valid_and_make_steps_of_16_384_tokens() {
    let files = run_files();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        let run = with(GIVEN).with_file(&file).unwrap();
        run.validate().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let RunConfig { data, train, .. } = &run;
        let row = train.batches.packing.expect("rows are packed");
        let step = row * train.batches.size * train.gradient_accumulation_steps;
        assert_eq!(step, 16_384, "{}", file.display());
        assert_eq!(data.max_length, row, "{}", file.display());
    }
}

/// A schedule without a warm-up does not complain about one that nobody asked for.
#[test]
fn the_default_warmup_goes_with_the_schedule() {
    let run = |more: &[&str]| with(GIVEN.into_iter().chain(more.iter().copied()));
    let constant = run(&["train.schedule=constant"]);
    constant.validate().unwrap();
    assert_eq!(constant.completed().train.warmup, Warmup::Steps(0));
    for settings in
        [&["train.schedule=linear"][..], &["train.schedule=constant", "train.schedule=linear"]]
    {
        assert_eq!(run(settings).completed().train.warmup, Warmup::Ratio(0.03));
    }
    // One that was asked for is an error, in either order.
    let error = "this schedule has no warm-up";
    for settings in [
        ["train.warmup={ steps = 20 }", "train.schedule=constant"],
        ["train.schedule=constant", "train.warmup={ steps = 20 }"],
    ] {
        assert!(run(&settings).validate().unwrap_err().to_string().contains(error));
    }
}

#[test]
fn products_in_fp8_go_with_four_bits() {
    let run = |more: &[&str]| with(GIVEN.into_iter().chain(more.iter().copied()));
    let fp8 = run(&["model.compute=fp8"]);
    fp8.validate().unwrap();
    let file = fp8.to_toml().unwrap();
    assert!(file.contains("compute = \"fp8\""), "{file}");
    run(&["model.compute=fp8", "model.format=none"]).validate().unwrap();
    let error = run(&["model.compute=fp8", "model.format=int8"]).validate().unwrap_err();
    assert!(error.to_string().contains("weights of 4 bits"), "{error}");
    let error = RunConfig::default().with_setting("model.compute=fp4").unwrap_err().to_string();
    assert!(error.contains("fp8"), "{error}");
}

#[test]
fn a_run_can_be_one_of_lora_fa() {
    let run = with(GIVEN.into_iter().chain(["train.optimizer.name=lorafa"]));
    run.validate().unwrap();
    assert_eq!(run.train.optimizer, OptimizerConfig::lora_fa());
}

#[test]
fn a_written_run_is_the_same_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let sets = [
        "devices=['cuda:0', 'cuda:1']",
        "train.optimizer.name=lion",
        "train.schedule={polynomial = {power = 2.0}}",
        "train.warmup.steps=7",
        "train.max_grad_norm=0",
        "train.recompute.every=2",
        "train.early_stopping.patience=3",
        "train.lora_plus=16.0",
        "model.dtype=f32",
        "adapter.target_modules=['q_proj', 'v_proj']",
        "adapter.exclude_modules='.*up_proj'",
        "adapter.layers_to_transform=[0, 2]",
        "adapter.layers_pattern=layers",
        "adapter.rank_pattern.q_proj=4",
        "adapter.alpha_pattern.q_proj=4.5",
        "adapter.init_lora_weights=loftq",
        "adapter.loftq_config.loftq_iter=3",
        "adapter.modules_to_save=['lm_head']",
        "adapter.target_parameters=['experts.down_proj']",
        "adapter.trainable_token_indices=[5, 6]",
        "adapter.bias=lora_only",
        "adapter.seed=7",
        "adapter.task_type=SEQ_CLS",
        "data.columns.prompt=question",
        "data.columns.completion=answer",
        "data.chat_variables.enable_thinking=false",
        "data.train_on=last_turn",
        "data.valid_split=0.1",
        "generate.temperature=0.7",
        "generate.stop_strings=['User:']",
    ];
    let mut runs = vec![RunConfig::default(), with(sets), with(sets).completed()];
    for init in ["gaussian", "pissa_niter_4", "olora", "eva"] {
        runs.push(with([format!("adapter.init_lora_weights={init}").as_str()]));
    }
    runs.extend(run_files().iter().map(|file| RunConfig::from_file(file).unwrap()));
    let mut eva = RunConfig::default();
    eva.adapter = eva.adapter.init(Init::Eva { rho: 1.5 });
    runs.push(eva);
    for run in runs {
        let text = run.to_toml().unwrap();
        fs::write(&file, &text).unwrap();
        assert_eq!(RunConfig::from_file(&file).unwrap(), run, "{text}");
    }
}

#[test]
fn later_layers_go_over_earlier_ones() {
    let file = "../../examples/configs/llama-3.1-8b-qlora-24gb.toml";
    let run = ["train.batches.size=3", "train.neftune=5", "model.format=int8"];
    let run = run.iter().fold(RunConfig::from_file(file).unwrap(), |run, setting| {
        run.with_setting(setting).unwrap()
    });
    let run = run.with("adapter.r", 8).unwrap().with("train.learning_rate", 1e-5).unwrap();
    assert_eq!((run.adapter.rank(), run.train.learning_rate), (8, 1e-5));
    // What is not named stays: the file's, or the default.
    assert_eq!((run.train.batches.size, run.train.batches.packing), (3, Some(8192)));
    assert_eq!((run.train.neftune, run.train.log_steps), (Some(5.0), 10));
    assert_eq!(run.model.format, WeightFormat::Int8);
    assert_eq!(run.lora(), LoraConfig::new(8, 128).all_linear());
    // Of alternatives the last one counts, whole.
    let run = with(["train.warmup.steps=3"]);
    assert_eq!(run.train.warmup, Warmup::Steps(3));
}

#[test]
fn what_follows_from_other_settings() {
    let run = with(["data.valid_split=0.1"]);
    assert_eq!(
        (run.train.evaluate, run.completed().train.evaluate),
        (None, Some(Every::Epochs(1)))
    );
    let run = run.with_setting("train.evaluate.steps=5").unwrap();
    assert_eq!(run.completed(), run);
    assert_eq!(with([]).completed().train.evaluate, None);

    let lora = LoraConfig::new(16, 32).all_linear();
    assert_eq!(with([]).lora(), lora);
    assert_eq!(with(["model.path=a/model"]).lora(), lora.clone().base_model("a/model"));
    let named = ["model.path=a/model", "adapter.base_model_name_or_path=org/model"];
    assert_eq!(with(named).lora(), lora.base_model("org/model"));
}

#[test]
fn wrong_names_and_values_are_errors_that_say_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    for (text, parts) in [
        (
            "[train]\nlearning_rte = 1e-4\n",
            ["run.toml", "line 2", "`learning_rte` (nearest: `learning_rate`)"],
        ),
        (
            "[adapter]\nr = 8\nlora_alhpa = 16\n",
            ["run.toml", "line 3", "`lora_alhpa` (nearest: `lora_alpha`)"],
        ),
        ("[trian]\n", ["run.toml", "line 1", "`trian` (nearest: `train`)"]),
        ("[model]\nformat = 'nf5'\n", ["run.toml", "line 2", "`nf5` (nearest: `nf4`)"]),
        ("[generate]\ntop_b = 1\n", ["run.toml", "line 2", "`top_b` (nearest: `top_"]),
        ("devices = ['gpu']\n", ["run.toml", "line 1", "auto, cuda"]),
        ("[train.batches]\nsize = 'two'\n", ["run.toml", "line 2", "size"]),
        ("[adapter]\ninit_lora_weights = 'pisa'\n", ["run.toml", "line 1", "pisa"]),
        ("[data.chat_variables]\nx = [nan]\n", ["run.toml", "line", "`x`"]),
        ("[data]\nfiles = [\n", ["run.toml", "TOML parse error", "line"]),
    ] {
        fs::write(&file, text).unwrap();
        let error = RunConfig::from_file(&file).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "no `{part}` in: {error}"));
    }
    for (setting, part) in [
        ("train.epoch=3", "`epoch` (nearest: `epochs`)"),
        ("train.epochs=three", "epochs"),
        ("train.optimizer.name=adam", "`adam`"),
        ("epochs=3", "`epochs`"),
        ("train.epochs", "NAME=VALUE"),
        ("train.warmup=0", "{ ratio = 0.03 }"),
        ("train.save=100", "{ steps = 100 }"),
        ("train.optimizer=lion", "{ name = "),
        ("adapter.r=-1", "r"),
    ] {
        let error = RunConfig::default().with_setting(setting).unwrap_err().to_string();
        let said = error.strip_prefix(&format!("{setting}: ")).unwrap_or_default();
        assert!(said.contains(part), "no `{part}` in: {error}");
    }
    let error = RunConfig::default().with("adapter.rank", 8).unwrap_err().to_string();
    assert!(error.starts_with("adapter.rank: unknown field `rank`"), "{error}");
    let error = RunConfig::from_file("no/such.toml").unwrap_err();
    assert!(matches!(&error, TrainError::Io { .. }) && error.to_string().contains("no/such.toml"));
}

#[test]
fn what_is_missing_or_wrong_shows_before_anything_is_loaded() {
    for (settings, part) in [
        (vec![], "`model.path` is not set"),
        (GIVEN[..1].to_vec(), "`data.files` is not set"),
        (GIVEN[..2].to_vec(), "`train.output` is not set"),
        ([&GIVEN[..], &["devices=[]"]].concat(), "`devices` is not set"),
        ([&GIVEN[..], &["train.evaluate.steps=5"]].concat(), "`train.evaluate`"),
        ([&GIVEN[..], &["data.valid_split=1.5"]].concat(), "`data.valid_split` is 1.5"),
        ([&GIVEN[..], &["data.valid=['v']", "data.valid_split=0.5"]].concat(), "leave one out"),
        ([&GIVEN[..], &["data.max_length=1"]].concat(), "`data.max_length`"),
        ([&GIVEN[..], &["adapter.r=0"]].concat(), "[adapter]: "),
        ([&GIVEN[..], &["generate.top_p=2"]].concat(), "[generate]: "),
        ([&GIVEN[..], &["train.epochs=0"]].concat(), "[train]: `epochs`"),
        ([&GIVEN[..], &["train.warmup.ratio=2"]].concat(), "[train]: `warmup` is 2"),
        (
            [&GIVEN[..], &["train.schedule=constant", "train.warmup.steps=20"]].concat(),
            "[train]: `warmup` is 20: this schedule",
        ),
        (
            [&GIVEN[..], &["model.block_size=48"]].concat(),
            "[model]: `nf4`: nf4 has no blocks of 48",
        ),
        (
            [&GIVEN[..], &["model.format=int8", "model.block_size=64"]].concat(),
            "[model]: `block_size` is 64: it goes with a format of 4 bits",
        ),
    ] {
        let run = with(settings);
        let error = run.validate().unwrap_err().to_string();
        assert!(error.contains(part), "no `{part}` in: {error}");
        assert_eq!(run.run().unwrap_err().to_string(), error);
    }
    let early = ["train.early_stopping.patience=2", "data.valid_split=0.1"];
    assert!(with(GIVEN.into_iter().chain(early)).validate().is_ok());
}

/// Each name opens its storage, which takes the bytes that it says.
#[test]
fn formats_by_name_quantize_a_model() {
    let mut sizes = vec![];
    for format in WeightFormat::ALL {
        let model = with([
            "devices=['cpu']",
            "model.path=../../testdata/gqa",
            "adapter.r=2",
            format!("model.format={format}").as_str(),
        ]);
        let device = model.devices().unwrap().remove(0);
        let model = model.load_model(&device).unwrap();
        sizes.push((model.summary().bytes(), format.to_string()));
    }
    let dense = sizes[0].0;
    sizes[1..].iter().for_each(|(bytes, name)| assert!(*bytes < dense, "{name}: {bytes}"));
}

#[test]
fn a_memory_budget_decides_what_runs_again() {
    let mut model = Llama::from_pretrained(golden("gqa")).load(&device()).unwrap();
    model.add_adapter("default", &LoraConfig::new(16, 32).all_linear()).unwrap();
    let fitted = |budget: &str| with([format!("memory_budget={budget}").as_str()]);
    let recompute =
        |budget: &str| fitted(budget).within_budget(&model, 64).map(|run| run.train.recompute);
    assert_eq!(recompute("24 GiB").unwrap(), Recompute::None);
    let error = recompute("0.01 GiB").unwrap_err().to_string();
    assert!(error.contains("memory_budget") && error.contains("train.batches.size"), "{error}");
    let error = RunConfig::default().with_setting("memory_budget=24").unwrap_err().to_string();
    assert!(error.contains("24 GiB"), "{error}");
    if burn_lora_train::plan::device_memory(&device()).is_none() {
        assert!(recompute("device").unwrap_err().to_string().contains("say how many GiB"));
    }
    // Without a budget the settings decide.
    let run = with(["train.recompute={ all_but = 3 }"]).within_budget(&model, 64).unwrap();
    assert_eq!(run.train.recompute, Recompute::AllBut(3));
    // As it was written.
    let written = fitted("13.3 GB").to_toml().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, written).unwrap();
    assert_eq!(RunConfig::from_file(file.path()).unwrap(), fitted("13.3 GB"));
}

#[test]
fn a_plan_knows_the_method_of_a_given_adapter() {
    let config = LlamaConfig::from_file(golden("gqa").join("config.json")).unwrap();
    for name in ["vera", "tokens", "lorafa"] {
        let folder = golden("methods").join("gqa").join(name);
        let mut run = RunConfig::default();
        run.model.adapter = Some(folder.clone());
        let method = saved_method(&folder).unwrap();
        let expected = MemoryPlan::new(&config).adapter(&*method).unwrap();
        let plan = run.plan(&config, 64).unwrap();
        assert_eq!(plan.peak().adapter, expected.peak().adapter, "{name}");
    }
}
