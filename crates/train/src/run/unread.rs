//! Measurements that a device has not returned yet. A line of the log is read while the device
//! computes the next step: it never waits for its host.

use crate::TrainError;
use burn::tensor::Tensor;
use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Instant,
};

/// Measurements of one optimizer step.
pub(super) struct Measured {
    pub step: usize,
    /// Mean loss, norm of the gradients, and sums of the metrics.
    pub values: Tensor<1>,
    /// Number of items that the loss is the mean of.
    pub count: usize,
    /// Numbers of items that the sums of the metrics are over.
    pub metric_counts: Vec<usize>,
    pub tokens: usize,
    pub rate: f64,
    pub samples: Vec<usize>,
    /// Passes over the data, and tokens, with this step.
    pub epoch: f64,
    pub all_tokens: u64,
}

/// Steps of a line of the log, with their values one after the other.
pub(super) struct Line {
    pub steps: Vec<Measured>,
    pub values: Vec<f32>,
    pub seconds: f64,
}

/// Values, and when they were there.
type Answer = Result<(Vec<f32>, Instant), TrainError>;

/// Measurements since the last line.
#[derive(Default)]
pub(super) struct Unread {
    steps: Vec<Measured>,
    reading: Option<(Vec<Measured>, Receiver<Answer>)>,
    /// End of the last line, or start of the first step since.
    since: Option<Instant>,
}

impl Unread {
    /// Notes that a step begins.
    pub fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    pub fn push(&mut self, step: Measured) {
        self.steps.push(step);
    }

    /// Ends a line: starts to read its steps, if there are any. The line before has to have been taken.
    pub fn end_line(&mut self) {
        let Some(last) = self.steps.last() else { return };
        let what = format!("step {}", last.step);
        let values = Tensor::cat(self.steps.iter().map(|step| step.values.clone()).collect(), 0);
        let (send, receive) = sync_channel(1);
        // A thread has a stream of its own, whose copy waits for what was sent up to now only.
        thread::spawn(move || {
            let values = values.try_into_data().map_err(|error| TrainError::device(what, error));
            let values = values.map(|values| values.iter::<f32>().collect());
            // Nobody listens any more if the run has failed.
            let _ = send.send(values.map(|values| (values, Instant::now())));
        });
        self.reading = Some((std::mem::take(&mut self.steps), receive));
    }

    /// Returns the line that is being read, if there is one, once it is there.
    ///
    /// # Errors
    /// [`TrainError::Device`] if the device failed.
    pub fn line(&mut self) -> Result<Option<Line>, TrainError> {
        let Some((steps, receive)) = self.reading.take() else { return Ok(None) };
        let panicked = || TrainError::device("the log", "the thread that reads it panicked");
        let (values, end) = receive.recv().map_err(|_| panicked())??;
        let since = self.since.replace(end).unwrap_or(end);
        Ok(Some(Line { steps, values, seconds: (end - since).as_secs_f64() }))
    }

    /// Notes that the device does something else than steps.
    pub fn pause(&mut self) {
        self.since = None;
    }
}
