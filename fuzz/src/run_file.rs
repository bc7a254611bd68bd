//! The run file of `burn-lora train`.

use crate::folder;
use burn_lora::prelude::RunConfig;

pub(crate) fn run(data: &[u8]) {
    let folder = folder("run-file", &[("run.toml", data)]);
    let Ok(run) = RunConfig::from_file(folder.join("run.toml")) else { return };
    let valid = run.validate().is_ok();
    let _ = run.lora();
    if valid {
        let text = run.to_toml().expect("what was read can be written");
        let again = folder.join("again.toml");
        std::fs::write(&again, text).expect("the folder is there");
        assert!(RunConfig::from_file(again).is_ok());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let configs = [
        include_str!("../../examples/configs/llama-3.1-8b-qlora-8gb.toml"),
        include_str!("../../examples/configs/llama-3.1-8b-qlora-80gb.toml"),
    ];
    let whole = "devices = ['cuda:0', 'cpu']\n[model]\npath = 'm'\ndtype = 'f32'\n[data]\nfiles = ['d.jsonl']\n\
        valid_split = 0.1\ntrain_on = 'last_turn'\n[data.chat_variables]\nenable_thinking = false\n[adapter]\n\
        r = 8\ninit_lora_weights = 'pissa_niter_4'\nrank_pattern = { q_proj = 4 }\n[train]\noutput = 'o'\n\
        epochs = 1.5\nneftune = 5.0\nschedule = { polynomial = { power = 2.0 } }\n\
        warmup = { ratio = 0.1 }\n[train.batches]\nsize = 4\npacking = 64\n[train.early_stopping]\n\
        patience = 3\n[generate]\ntemperature = 0.7\nstop_strings = ['User:']\n";
    let default = RunConfig::default().to_toml().expect("it can be written");
    configs.into_iter().chain([whole, default.as_str()]).map(Into::into).collect()
}
