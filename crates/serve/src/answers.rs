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
    pub stops: Arc<[String]>,
    pub seed: u64,
    /// Whether the new text goes on where the prompt ends, rather than being one of its own.
    pub goes_on: bool,
}

/// Texts on their way. Dropping this ends them.
pub(crate) struct Answers {
    events: UnboundedReceiver<(usize, Event)>,
    /// Texts that have not ended.
    going: usize,
}

/// The place of a text in the queue, which is free again when this is dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
        if count > self.most {
            return Err(ApiError::invalid(Some("n"), format!("{count} texts: {} fit", self.most)));
        }
        let more = |before| (before + count <= self.most).then_some(before + count);
        let taken = self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map_err(|before| ApiError::busy(before, self.most))?;
        let places: Vec<_> = (0..count).map(|_| Place(self.places.clone())).collect();
        let (sender, events) = unbounded_channel();
        let began = Instant::now();
        let config = served.ends.iter().fold(texts.config, |config, end| config.stop_token(*end));
        let prompts = texts.prompts.into_iter().flat_map(|p| std::iter::repeat_n(p, texts.each));
        for ((number, prompt), place) in prompts.enumerate().zip(places) {
            let job = Job {
                prompt,
                config: config.clone().seed(texts.seed.wrapping_add(number as u64)),
                adapter: served.adapter.clone(),
                tokenizer: served.tokenizer.clone(),
                stops: texts.stops.clone(),
                goes_on: texts.goes_on,
                began,
                deadline: began.checked_add(self.timeout),
                number,
                events: sender.clone(),
                _place: place,
            };
            self.commands.send(Command::Continue(Box::new(job))).map_err(|_| ApiError::broken())?;
        }
        Ok(Answers { events, going: count })
    }
}

impl Answers {
    /// Waits for the next event, with the number of its text; `None` after the ends of all.
    pub async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        if self.going == 0 {
            return Ok(None);
        }
        let (number, event) = self.events.recv().await.ok_or_else(ApiError::broken)?;
        if let Event::Failed(failure) = event {
            return Err(failure.into());
        }
        self.going -= usize::from(matches!(event, Event::Ended(_)));
        Ok(Some((number, event)))
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(reason) => Self::invalid(None, reason),
            Failure::Gone => Self::gone(),
            Failure::Late => Self::late(),
            Failure::Ending => Self::ending(),
            Failure::Broken(reason) => Self::failed(reason),
        }
    }
}
