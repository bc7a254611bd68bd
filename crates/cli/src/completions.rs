//! `burn-lora completions`.

use clap::{Args, Command};
use clap_complete::Shell;
use std::{error::Error, io::Write};

const EXAMPLES: &str = "\
Examples:
  burn-lora completions bash > ~/.local/share/bash-completion/completions/burn-lora
  burn-lora completions zsh > ~/.zfunc/_burn-lora   # a folder of fpath
  burn-lora completions fish > ~/.config/fish/completions/burn-lora.fish";

/// Writes a script with which a shell completes commands and options.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Writes the script.
pub fn completions(
    arguments: &Arguments,
    mut command: Command,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let mut script = vec![];
    clap_complete::generate(arguments.shell, &mut command, "burn-lora", &mut script);
    // A reader that has left is noticed by the output.
    _ = out.write_all(&script);
    Ok(())
}
