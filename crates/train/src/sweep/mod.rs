//! Sweeps: several runs that differ in some settings, compared by their validation loss.
//!
//! A [`Sweep`] is a [run](crate::RunConfig) and [axes](Axis): settings with the values to try. Each combination is a
//! [`Trial`], a run in a folder of its own. [`Sweep::run`] trains them one after the other, or in
//! [successive halving](Strategy::Halving), and returns a [`SweepReport`]: a table, by validation loss. The same sweep
//! in the same folder goes on where it was stopped.

mod axis;
mod observer;
mod picture;
mod report;
mod results;
mod run;
mod settings;
mod train;
mod trial;

pub use axis::Axis;
pub use observer::{SweepObserver, SweepProgress};
pub use report::SweepReport;
pub use results::{Status, TrialResult};
pub use settings::{Strategy, Sweep};
pub use trial::Trial;
