//! The thread that runs the model: texts join and leave at any token, adapters come and go between two.

use crate::{answers::Place, metrics::Metrics};
use burn_lora_adapter::{AdaptableExt, BASE, Selection};
use burn_lora_llama::{
    Generate, GenerateConfig, Generation, LlamaError, LogProbs, NextToken, Stopped, TextStream,
};
use burn_lora_text::Tokenizer;
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
    time::Instant,
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

/// What the thread is asked for.
pub(crate) enum Command {
    Continue(Box<Job>),
    /// Under a name that no adapter had before.
    Load {
        name: String,
        folder: PathBuf,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Texts that use it go on to their ends.
    Unload(String),
    /// Ends all texts, and the thread.
    End,
}

/// A text to continue.
pub(crate) struct Job {
    pub prompt: Vec<u32>,
    pub config: GenerateConfig,
    pub adapter: Option<String>,
    pub tokenizer: Arc<Tokenizer>,
    pub stops: Arc<[String]>,
    /// Whether the new text goes on where the prompt ends, rather than being one of its own.
    pub goes_on: bool,
    pub began: Instant,
    pub deadline: Option<Instant>,
    /// Number of the text in its request, with which its events come.
    pub number: usize,
    pub events: UnboundedSender<(usize, Event)>,
    pub _place: Place,
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
    /// Its adapter was unloaded.
    Gone,
    /// The time is over.
    Late,
    /// The server ends.
    Ending,
    /// The model has failed.
    Broken(String),
}

/// Error: the model has failed for good.
#[derive(Debug)]
pub(crate) struct Broken;

pub(crate) struct Worker<M> {
    model: M,
    texts: Generation<M>,
    jobs: HashMap<u64, Running>,
    next: u64,
    /// Adapters that go when no text uses them.
    leaving: Vec<String>,
    batch: usize,
    prompt_lookup: usize,
    metrics: Arc<Metrics>,
    /// Steps that failed, one after the other.
    failures: usize,
}

/// After so many failures in a row the model is not asked any more.
const FAILURES: usize = 3;

struct Running {
    job: Job,
    text: TextStream,
    begun: bool,
}

impl<M: Generate> Worker<M> {
    pub fn new(model: M, batch: usize, prompt_lookup: usize, metrics: Arc<Metrics>) -> Self {
        let (texts, jobs, leaving) = (Generation::new(&model, batch), HashMap::new(), vec![]);
        Self { model, texts, jobs, next: 0, leaving, batch, prompt_lookup, metrics, failures: 0 }
    }

    /// Runs until it is told to end.
    pub fn run(mut self, commands: &Receiver<Command>) -> Result<(), Broken> {
        loop {
            let mut next = if self.jobs.is_empty() { commands.recv().ok() } else { None };
            if self.jobs.is_empty() && next.is_none() {
                // Nobody can ask any more.
                return Ok(());
            }
            // Those that come together are read together.
            while let Some(command) = next.take().or_else(|| commands.try_recv().ok()) {
                match command {
                    Command::Continue(job) => self.begin(*job),
                    Command::Load { name, folder, done } => {
                        _ = done.send(self.load(&name, folder));
                    }
                    Command::Unload(name) => self.leaving.push(name),
                    Command::End => {
                        self.end_all(&Failure::Ending);
                        return Ok(());
                    }
                }
            }
            self.drop_gone_and_late();
            self.unload();
            self.step()?;
            self.count();
        }
    }

    /// Loads an adapter that may run beside any other.
    fn load(&mut self, name: &str, folder: PathBuf) -> Result<(), String> {
        let mut model = self.model.clone();
        model.load_adapter(name, folder).map_err(|error| error.to_string())?;
        let [found, expected] = [&model, &self.model].map(|model| model.vocabulary());
        if found != expected {
            let reason = "all share the model's embeddings: merge it, and serve that";
            return Err(format!(
                "its vocabulary has {found} tokens, the base {expected}; {reason}"
            ));
        }
        let mixed = model.activate(Selection::rows([name, BASE]));
        mixed.map_err(|error| format!("it cannot run beside others: {error}"))?;
        self.model = model;
        self.texts.set_model(&self.model);
        Ok(())
    }

    fn begin(&mut self, mut job: Job) {
        let id = self.next;
        self.next += 1;
        let active = self.model.activate(Selection::adapters(job.adapter.iter()));
        let Ok(active) = active else { return job.send(Event::Failed(Failure::Gone)) };
        let prompt = std::mem::take(&mut job.prompt);
        self.metrics.prompt_tokens.inc_by(prompt.len() as u64);
        let before = if job.goes_on { &prompt[..] } else { &[] };
        let text = TextStream::new(&job.tokenizer).stops(job.stops.iter().cloned()).after(before);
        let config = job.config.clone().adapters(active).prompt_lookup(self.prompt_lookup);
        let begun = text.and_then(|text| self.texts.push(id, prompt, config).map(|()| text));
        match begun {
            Ok(text) => _ = self.jobs.insert(id, Running { job, text, begun: false }),
            Err(error) => job.send(Event::Failed(Failure::Refused(error.to_string()))),
        }
    }

    /// A step of all texts, which a failure ends.
    fn step(&mut self) -> Result<(), Broken> {
        let texts = &mut self.texts;
        // What a panic leaves of the texts is dropped.
        let found = catch_unwind(AssertUnwindSafe(|| texts.step().map_err(|e| e.to_string())));
        match found.unwrap_or_else(|_| Err("the model has panicked".into())) {
            Ok(found) => {
                self.failures = 0;
                self.count();
                found.into_iter().for_each(|next| self.pass_on(next));
                Ok(())
            }
            Err(error) => {
                self.failures += 1;
                burn_lora_io::warn!("texts were ended, as the model has failed: {error}");
                self.end_all(&Failure::Broken(error));
                self.texts = Generation::new(&self.model, self.batch);
                if self.failures < FAILURES { Ok(()) } else { Err(Broken) }
            }
        }
    }

    fn count(&self) {
        self.metrics.running.set(self.texts.running() as i64);
        self.metrics.waiting.set(self.texts.waiting() as i64);
    }

    /// Ends texts that nobody waits for, and those that are late.
    fn drop_gone_and_late(&mut self) {
        let now = Instant::now();
        let texts = &mut self.texts;
        self.jobs.retain(|id, Running { job, .. }| {
            let gone = job.events.is_closed();
            let late = job.deadline.is_some_and(|deadline| now > deadline);
            if late {
                job.send(Event::Failed(Failure::Late));
            }
            if gone || late {
                texts.stop(*id);
            }
            !gone && !late
        });
    }

    /// Passes on what a step added to a text.
    fn pass_on(&mut self, next: NextToken) {
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
            self.metrics.whole_text.observe(running.job.began.elapsed().as_secs_f64());
            running.job.send(end);
        }
    }

    fn end_all(&mut self, failure: &Failure) {
        for (id, running) in self.jobs.drain() {
            self.texts.stop(id);
            running.job.send(Event::Failed(failure.clone()));
        }
    }

    /// Removes adapters that no text uses any more.
    fn unload(&mut self) {
        let jobs = &self.jobs;
        let is_used =
            |name: &String| jobs.values().any(|text| text.job.adapter.as_ref() == Some(name));
        let (used, unused): (Vec<_>, Vec<_>) = self.leaving.drain(..).partition(is_used);
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
        let failed = |error: LlamaError| Some(Event::Failed(Failure::Broken(error.to_string())));
        if let Some(token) = next.token {
            let text = match self.text.push(token) {
                Ok(text) => text,
                Err(error) => return failed(error),
            };
            let log_probs = next.log_probs.clone();
            self.job.send(Event::Piece(Piece { text, token: Some(token), log_probs }));
        }
        let stopped = if self.text.is_stopped() { Some(Stopped::Text) } else { next.stopped };
        let stopped = stopped?;
        match self.text.finish() {
            Ok(text) if text.is_empty() => {}
            Ok(text) => {
                self.job.send(Event::Piece(Piece { text, token: None, log_probs: None }));
            }
            Err(error) => return failed(error),
        }
        Some(Event::Ended(if self.text.is_stopped() { Stopped::Text } else { stopped }))
    }
}

impl Job {
    /// Sends an event, if somebody waits for it.
    fn send(&self, event: Event) {
        _ = self.events.send((self.number, event));
    }
}
