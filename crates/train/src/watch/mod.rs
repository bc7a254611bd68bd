//! Watching a run: events, progress, metrics, pictures.
//!
//! A run tells its [`Observer`]s what happens. [`Progress`] shows it, [`MetricsLog`] keeps it in a
//! file, [`plot_metrics`] draws that file; `TensorBoard` (with the feature of that name) writes what
//! TensorBoard reads.

mod chart;
mod events;
mod metrics;
mod plot;
mod progress;
#[cfg(feature = "tensorboard")]
mod tensorboard;

pub use events::{EvalMetrics, Finished, Named, Observer, Started, StepMetrics, StopReason};
pub use metrics::{MetricsLog, Record};
pub use plot::{plot_lines, plot_metrics};
pub use progress::Progress;
#[cfg(feature = "tensorboard")]
pub use tensorboard::TensorBoard;
