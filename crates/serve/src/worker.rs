//! The thread that runs the model: texts join and leave at any token, adapters come and go between two.

use crate::metrics::Metrics;
use burn_lora_adapter::{AdaptableExt, Selection};
use burn_lora_llama::{
    Generate, GenerateConfig, Generation, LogProbs, NextToken, Stopped, TextStream,
};
use burn_lora_text::Tokenizer;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
    time::Instant,
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

/// What the thread is asked for.
pub(crate) enum Command {
    Continue(Job),
    Load {
        name: String,
        folder: PathBuf,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Texts that use it go on to their ends.
    Unload(String),
    /// Ends all texts.
    EndAll,
}

/// A text to continue.
pub(crate) struct Job {
    pub prompt: Vec<u32>,
    pub config: GenerateConfig,
    pub adapter: Option<String>,
    pub tokenizer: Arc<Tokenizer>,
    pub stops: Vec<String>,
    pub began: Instant,
    pub deadline: Instant,
    /// Number of the text in its request, with which its events come.
    pub number: usize,
    pub events: UnboundedSender<(usize, Event)>,
}

/// What becomes of a text.
pub(crate) enum Event {
    Piece(Piece),
    Ended(Stopped),
    Failed(Failure),
}

/// What a token adds to a text.
pub(crate) struct Piece {
    /// Text that is certain now; often empty.
    pub text: String,
    /// The token; `None` for text that had been held back.
    pub token: Option<u32>,
    pub log_probs: Option<LogProbs>,
}

/// Reason why a text has no end.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// It cannot be continued: a message for who asked.
    Refused(String),
    /// The time is over.
    Late,
    /// The server ends.
    Ending,
    /// The model has failed.
    Broken(String),
}

pub(crate) struct Worker<M> {
    model: M,
    texts: Generation<M>,
    jobs: HashMap<u64, Running>,
    next: u64,
    /// Adapters that go when no text uses them.
    leaving: Vec<String>,
    batch: usize,
    metrics: Arc<Metrics>,
}

struct Running {
    job: Job,
    text: TextStream,
    begun: bool,
}

impl<M: Generate> Worker<M> {
    pub fn new(model: M, batch: usize, metrics: Arc<Metrics>) -> Self {
        let texts = Generation::new(&model, batch);
        Self { model, texts, jobs: HashMap::new(), next: 0, leaving: vec![], batch, metrics }
    }

    /// Runs until nobody can send commands any more.
    pub fn run(mut self, commands: &Receiver<Command>) {
        loop {
            if self.jobs.is_empty() {
                match commands.recv() {
                    Ok(command) => self.take(command),
                    Err(_) => return,
                }
            }
            // Those that come together are read together.
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            self.leave_out();
            match self.texts.step() {
                Ok(found) => found.into_iter().for_each(|next| self.tell(next)),
                Err(error) => {
                    burn_lora_io::warn!("texts were ended, as the model has failed: {error}");
                    self.end_all(&Failure::Broken(error.to_string()));
                    self.texts = Generation::new(&self.model, self.batch);
                }
            }
            self.unload();
            self.metrics.running.set(self.texts.running() as i64);
            self.metrics.waiting.set(self.texts.waiting() as i64);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Continue(job) => self.begin(job),
            Command::Load { name, folder, done } => {
                let leaving = self.leaving.contains(&name);
                let loaded = match leaving {
                    true => Err("texts still use the one that was unloaded".to_owned()),
                    false => self.model.load_adapter(&name, folder).map_err(|e| e.to_string()),
                };
                if loaded.is_ok() {
                    self.texts.set_model(&self.model);
                }
                _ = done.send(loaded.map(|_| ()));
            }
            Command::Unload(name) => {
                self.leaving.push(name);
                self.unload();
            }
            Command::EndAll => self.end_all(&Failure::Ending),
        }
    }

    fn begin(&mut self, mut job: Job) {
        let id = self.next;
        self.next += 1;
        let active = self.model.activate(Selection::adapters(job.adapter.iter()));
        let prompt = std::mem::take(&mut job.prompt);
        self.metrics.prompt_tokens.inc_by(prompt.len() as u64);
        let begun = active.map_err(|error| error.to_string()).and_then(|active| {
            let config = job.config.clone().adapters(active);
            self.texts.push(id, prompt, config).map_err(|error| error.to_string())
        });
        match begun {
            Ok(()) => {
                let text = TextStream::new(&job.tokenizer).stops(job.stops.iter().cloned());
                self.jobs.insert(id, Running { job, text, begun: false });
            }
            Err(reason) => _ = job.send(Event::Failed(Failure::Refused(reason))),
        }
    }

    /// Ends texts that nobody waits for, and those that are late.
    fn leave_out(&mut self) {
        let now = Instant::now();
        let texts = &mut self.texts;
        self.jobs.retain(|id, running| {
            let (gone, late) = (running.job.events.is_closed(), now > running.job.deadline);
            if late {
                _ = running.job.send(Event::Failed(Failure::Late));
            }
            if gone || late {
                texts.stop(*id);
            }
            !gone && !late
        });
    }

    /// Passes on what a step added to a text.
    fn tell(&mut self, next: NextToken) {
        let Some(running) = self.jobs.get_mut(&next.id) else { return };
        if !running.begun {
            running.begun = true;
            self.metrics.first_token.observe(running.job.began.elapsed().as_secs_f64());
        }
        let end = running.add(&next);
        self.metrics.generated_tokens.inc_by(u64::from(next.token.is_some()));
        let Some(end) = end else { return };
        if next.stopped.is_none() {
            self.texts.stop(next.id);
        }
        if let Some(running) = self.jobs.remove(&next.id) {
            self.metrics.whole_answer.observe(running.job.began.elapsed().as_secs_f64());
            _ = running.job.send(end);
        }
    }

    fn end_all(&mut self, failure: &Failure) {
        for (id, running) in self.jobs.drain() {
            self.texts.stop(id);
            _ = running.job.send(Event::Failed(failure.clone()));
        }
    }

    /// Removes adapters that no text uses any more.
    fn unload(&mut self) {
        let jobs = &self.jobs;
        let used =
            |name: &String| jobs.values().any(|text| text.job.adapter.as_ref() == Some(name));
        let (used, unused): (Vec<_>, Vec<_>) = self.leaving.drain(..).partition(used);
        self.leaving = used;
        for name in &unused {
            if let Err(error) = self.model.delete_adapter(name) {
                burn_lora_io::warn!("the memory of adapter `{name}` is not freed: {error}");
            }
        }
        if !unused.is_empty() {
            self.texts.set_model(&self.model);
        }
    }
}

impl Running {
    /// Passes on a token, and returns the end of the text if this is it.
    fn add(&mut self, next: &NextToken) -> Option<Event> {
        let failed = |error: burn_lora_llama::LlamaError| {
            Some(Event::Failed(Failure::Broken(error.to_string())))
        };
        if let Some(token) = next.token {
            let text = match self.text.push(token) {
                Ok(text) => text,
                Err(error) => return failed(error),
            };
            let log_probs = next.log_probs.clone();
            _ = self.job.send(Event::Piece(Piece { text, token: Some(token), log_probs }));
        }
        let stopped = if self.text.is_stopped() { Some(Stopped::Text) } else { next.stopped };
        let stopped = stopped?;
        match self.text.finish() {
            Ok(text) if text.is_empty() => {}
            Ok(text) => {
                _ = self.job.send(Event::Piece(Piece { text, token: None, log_probs: None }))
            }
            Err(error) => return failed(error),
        }
        Some(Event::Ended(if self.text.is_stopped() { Stopped::Text } else { stopped }))
    }
}

impl Job {
    /// Sends an event, if somebody waits for it.
    fn send(&self, event: Event) -> bool {
        self.events.send((self.number, event)).is_ok()
    }
}
