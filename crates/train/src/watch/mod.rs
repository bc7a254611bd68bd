//! Observation of a run: events, progress, metrics, plots.
//!
//! A run reports events to its [`Observer`]s. [`Progress`] shows them, [`MetricsLog`] writes them
//! to a file, [`plot_metrics`] plots that file, [`HtmlReport`] is a page with all that is known of the
//! run; `TensorBoard` (with the feature of that name) writes event files for TensorBoard.

mod chart;
mod events;
mod metrics;
mod plot;
mod progress;
mod report;
#[cfg(feature = "tensorboard")]
mod tensorboard;

pub(crate) use chart::Scale;
pub use events::{EvalMetrics, Finished, Named, Observer, Started, StepMetrics, StopReason};
pub use metrics::{MetricsLog, Record};
pub(crate) use plot::plot_lines_on;
pub use plot::{plot_lines, plot_metrics};
pub use progress::Progress;
pub use report::HtmlReport;
#[cfg(feature = "tensorboard")]
pub use tensorboard::TensorBoard;
