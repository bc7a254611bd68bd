//! `burn-lora sweep`.

use crate::{
    program,
    run_options::{RunOptions, with_option},
};
use burn_lora::{
    prelude::*,
    train::sweep::{Axis, Strategy, SweepProgress},
};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Trains with several values of some settings, and compares the validation losses.
///
/// Any setting of a run file can vary. Each combination of values is a run in a folder of its own in that
/// of --output, beside the results. The same command again goes on where it was stopped.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunOptions,
    /// File of a sweep, in place of a run file: its run, strategy and axes
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    sweep: Option<PathBuf>,
    /// Setting and the values to try, as in adapter.r=8,16,32; may be given several times. Settings that vary together:
    /// adapter.r,adapter.lora_alpha=[8,16],[16,32]
    #[arg(long, value_name = "NAME=VALUE,..")]
    over: Vec<String>,
    /// Train each combination whole, or only the best of them further and further [default: grid]
    #[arg(long, value_enum)]
    strategy: Option<Named>,
    /// Of successive halving: the best 1/FACTOR go on, to FACTOR times as many steps [default: 3]
    #[arg(long)]
    factor: Option<usize>,
    /// Of successive halving: steps that all combinations are trained for [default: as many as leave one for the whole run]
    #[arg(long, value_name = "STEPS")]
    min_steps: Option<usize>,
    /// Fraction by which the validation loss has to fall for the next value of the last --over to be tried, such as 0.01
    #[arg(long, value_name = "FRACTION")]
    min_gain: Option<f64>,
    /// Show the combinations, and stop
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Named {
    Grid,
    Halving,
}

impl Arguments {
    fn sweep(&self) -> Result<Sweep, Box<dyn Error>> {
        let mut sweep = match &self.sweep {
            Some(file) => Sweep::from_file(file)?,
            None => Sweep::new(self.run.file()?),
        };
        sweep.run = self.run.over(sweep.run)?;
        for axis in &self.over {
            let axis = axis.parse::<Axis>().map_err(|error| format!("--over {error}"))?;
            sweep = sweep.over(axis);
        }
        sweep.min_gain = self.min_gain.or(sweep.min_gain);
        match self.strategy {
            Some(Named::Grid) => sweep.strategy = Strategy::Grid,
            Some(Named::Halving) if sweep.strategy == Strategy::Grid => {
                sweep.strategy = Strategy::Halving { factor: 3, min_steps: None };
            }
            _ => {}
        }
        match &mut sweep.strategy {
            Strategy::Halving { factor, min_steps } => {
                *factor = self.factor.unwrap_or(*factor);
                *min_steps = self.min_steps.or(*min_steps);
            }
            _ if self.factor.is_some() || self.min_steps.is_some() => {
                return Err("--factor and --min-steps go with --strategy halving".into());
            }
            _ => {}
        }
        Ok(sweep)
    }
}

/// Runs the sweep. `interrupt` is called when there is something to interrupt.
pub fn sweep(
    arguments: &Arguments,
    interrupt: impl FnOnce() -> Result<Interrupt, TrainError>,
) -> Result<ExitCode, Box<dyn Error>> {
    let sweep = arguments.sweep()?;
    let trials = sweep.trials().map_err(with_option)?;
    if arguments.dry_run {
        let names: Vec<_> = trials.iter().map(|trial| trial.name.as_str()).collect();
        let text = format!("{} trials:\n  {}", names.len(), names.join("\n  "));
        program::result(text, &json!({ "trials": names }));
        return Ok(ExitCode::SUCCESS);
    }
    let interrupt = interrupt()?;
    let report = sweep.run(&mut SweepProgress::new(), &interrupt)?;
    let output = sweep.run.train.output.unwrap_or_default();
    if program::is_json() {
        program::document(&serde_json::to_value(&report)?);
    } else {
        let folder = output.display();
        println!("{report}");
        println!("{folder}/results.json  the results");
        println!("{folder}/sweep.svg     a picture of them");
        if let Some(best) = &report.best {
            println!("{}  the adapter", output.join(best).display());
        }
        if report.interrupted {
            println!("The same command goes on.");
        }
    }
    Ok(match interrupt.signal() {
        Some(signal) if report.interrupted => ExitCode::from(128 + signal),
        _ => ExitCode::SUCCESS,
    })
}
