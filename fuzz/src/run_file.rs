//! The run file of the program `finetune`.

use crate::folder;

#[path = "../../examples/support/precision.rs"]
mod precision;
#[allow(dead_code)]
#[path = "../../examples/support/run_file.rs"]
mod run_file;
#[path = "../../examples/support/weights.rs"]
mod weights;

use run_file::RunFile;

pub(crate) fn run(data: &[u8]) {
    let folder = folder("run-file", &[("run.toml", data)]);
    let Ok(run) = RunFile::default().with_file(&folder.join("run.toml")) else { return };
    let _ = (run.check(), run.lora());
    if run.check().is_ok() {
        let text = run.to_toml().expect("what was read can be written");
        assert!(RunFile::default().with("again", text.parse().unwrap()).is_ok());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let configs = [
        include_str!("../../examples/configs/llama-3.1-8b-qlora-8gb.toml"),
        include_str!("../../examples/configs/llama-3.1-8b-qlora-80gb.toml"),
    ];
    let whole = "[model]\npath = 'm'\ndtype = 'f32'\n[data]\nfiles = ['d.jsonl']\nvalid_split = 0.1\n\
        train_on = 'last_turn'\n[data.chat_variables]\nenable_thinking = false\n[adapter]\nr = 8\n\
        init_lora_weights = 'pissa_niter_4'\nrank_pattern = { q_proj = 4 }\n[train]\noutput = 'o'\n\
        epochs = 1.5\nneftune = 5.0\nschedule = { polynomial = { power = 2.0 } }\n\
        warmup = { ratio = 0.1 }\n[train.batches]\nsize = 4\npacking = 64\n[train.early_stopping]\n\
        patience = 3\n";
    let default = RunFile::default().to_toml().expect("it can be written");
    configs.into_iter().chain([whole, default.as_str()]).map(Into::into).collect()
}
