//! The examples: the quickstart, as the program that `cargo test` has built.

use std::process::Command;

/// The README's first command, with few samples of one epoch, in a folder of its own.
#[test]
fn the_quickstart_learns_and_leaves_an_adapter() {
    // Examples lie beside the folder of this test.
    let deps = std::env::current_exe().unwrap();
    let name = format!("quickstart{}", std::env::consts::EXE_SUFFIX);
    let program = deps.parent().unwrap().with_file_name("examples").join(name);
    assert!(program.exists(), "`cargo test` builds it, and `cargo build --examples`");
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(["--device", "cpu", "--epochs", "0.05", "--test", "8"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for part in ["6000 examples", "What 8 diamonds cost", "the model now", "answers the same"] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    let adapter = folder.path().join("quickstart-adapter");
    assert!(adapter.join("adapter_model.safetensors").exists());
    assert!(adapter.join("adapter_config.json").exists());
}
