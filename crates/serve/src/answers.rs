//! Requests on their way through the model: texts that were asked for, and what becomes of them.

use crate::{
    api::ApiError,
    metrics::Metrics,
    models::Served,
    worker::{Command, Event, Failure, Job},
};
use burn_lora_llama::GenerateConfig;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::Sender,
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The way to the thread that runs the model.
pub(crate) struct Queue {
    pub commands: Sender<Command>,
    /// Texts that were asked for and have not ended.
    places: Arc<AtomicUsize>,
    most: usize,
    timeout: Duration,
    pub metrics: Arc<Metrics>,
}

/// Texts to continue with the same settings, except that each has a seed of its own.
pub(crate) struct Texts {
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub each: usize,
    pub config: GenerateConfig,
    pub stops: Vec<String>,
    pub seed: u64,
}

/// Texts on their way. Dropping this ends them.
pub(crate) struct Answers {
    events: UnboundedReceiver<(usize, Event)>,
    places: Arc<AtomicUsize>,
    count: usize,
    left: usize,
}

impl Queue {
    pub fn new(
        commands: Sender<Command>,
        most: usize,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { commands, places: Arc::default(), most, timeout, metrics }
    }

    /// Sends texts to the model.
    pub fn ask(&self, served: &Served, texts: Texts) -> Result<Answers, ApiError> {
        let count = texts.prompts.len() * texts.each;
        let before = self.places.fetch_add(count, Ordering::Relaxed);
        let (sender, events) = unbounded_channel();
        // From here on dropped places are free again.
        let answers = Answers { events, places: self.places.clone(), count, left: count };
        if before + count > self.most {
            return Err(ApiError::busy(before, self.most));
        }
        let began = Instant::now();
        let prompts = texts.prompts.into_iter().flat_map(|p| std::iter::repeat_n(p, texts.each));
        for (number, prompt) in prompts.enumerate() {
            let job = Job {
                prompt,
                config: texts.config.clone().seed(texts.seed.wrapping_add(number as u64)),
                adapter: served.adapter.clone(),
                tokenizer: served.tokenizer.clone(),
                stops: texts.stops.clone(),
                began,
                deadline: began + self.timeout,
                number,
                events: sender.clone(),
            };
            self.commands.send(Command::Continue(job)).map_err(|_| ApiError::broken())?;
        }
        Ok(answers)
    }
}

impl Answers {
    /// Waits for the next event, with the number of its text; `None` after the ends of all.
    pub async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let (number, event) = self.events.recv().await.ok_or_else(ApiError::broken)?;
        if let Event::Failed(failure) = event {
            return Err(failure.into());
        }
        self.left -= usize::from(matches!(event, Event::Ended(_)));
        Ok(Some((number, event)))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.places.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(reason) => Self::invalid(None, reason),
            Failure::Late => Self::late(),
            Failure::Ending => Self::ending(),
            Failure::Broken(reason) => Self::failed(reason),
        }
    }
}
