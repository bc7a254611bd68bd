//! Report of a run as a page.

mod content;
mod figure;
mod page;
mod text;

use super::{EvalMetrics, Finished, Observer, Started, StepMetrics};
use crate::{data::Span, error::TrainError};
use content::{Answer, Content, Curves, Example, State};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// An observer that writes a page with all that is known of the run: its state, curves, settings,
/// examples, answers of the model. The page is one file of HTML, which loads nothing else.
///
/// It is written when the run starts, then [each 10 seconds](Self::every) at most, and when the run
/// ends; a reader finds either the old page or the new one. A run that resumes from step `k` shows
/// the curves up to `k` from `metrics.jsonl` in the same folder, if it is there. Of long curves the
/// lowest and highest values are kept, 1000 points in all. Values that are not finite are gaps.
///
/// [`Trainer`](crate::Trainer) writes one to its output folder;
/// [`Trainer::html_report`](crate::Trainer::html_report) takes one that has more to show.
///
/// ```
/// use burn_lora_train::watch::{HtmlReport, Observer, Started, StepMetrics};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("report.html");
/// let mut report = HtmlReport::new(&path);
/// report.title("Parcels").settings("[train]\nlearning_rate = 2e-4\n");
/// report.answer("Before", "Where is my parcel?", "Parcel is a noun.");
/// report.started(&Started { steps: 100, ..Default::default() })?;
/// report.step(&StepMetrics { step: 1, loss: 2.5, ..Default::default() })?;
/// report.write()?;
/// assert!(std::fs::read_to_string(&path).unwrap().contains("Running, step 1 of 100"));
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct HtmlReport {
    path: PathBuf,
    every: Duration,
    written: Option<Instant>,
    content: Content,
}

impl HtmlReport {
    /// Creates a report in a file that is written when the run starts. Its title is the name of the
    /// folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let folder = path.parent().and_then(Path::file_name).unwrap_or("Run".as_ref());
        let title = folder.to_string_lossy().into_owned();
        let content = Content { title, ..Content::default() };
        Self { path, every: Duration::from_secs(10), written: None, content }
    }

    /// Sets the title.
    pub fn title(&mut self, title: &str) -> &mut Self {
        self.content.title = title.to_owned();
        self
    }

    /// Sets the least time between two updates, 10 seconds by default.
    pub fn every(&mut self, least: Duration) -> &mut Self {
        self.every = least;
        self
    }

    /// Sets the settings of the run, as a text in TOML.
    pub fn settings(&mut self, settings: &str) -> &mut Self {
        self.content.settings = Some(settings.to_owned());
        self
    }

    /// Returns `true` if the settings are set.
    pub(crate) fn has_settings(&self) -> bool {
        self.content.settings.is_some()
    }

    /// Sets a table of names and values, in place of that of the same title.
    ///
    /// ```
    /// use burn_lora_train::watch::HtmlReport;
    ///
    /// HtmlReport::new("out/report.html").facts("Model", [("parameters", "135 M")]);
    /// ```
    pub fn facts<N: Into<String>, V: Into<String>>(
        &mut self,
        title: &str,
        rows: impl IntoIterator<Item = (N, V)>,
    ) -> &mut Self {
        let rows = rows.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let facts = &mut self.content.facts;
        match facts.iter_mut().find(|(known, _)| known == title) {
            Some((_, known)) => *known = rows,
            None => facts.push((title.to_owned(), rows)),
        }
        self
    }

    /// Adds an example, with where it is from. Its trained tokens are marked.
    ///
    /// ```
    /// use burn_lora_text::Tokenizer;
    /// use burn_lora_train::{data::Dataset, watch::HtmlReport};
    ///
    /// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = serde_json::json!({ "prompt": "hello", "completion": " world" });
    /// let data = Dataset::from_records([record]).load(&tokenizer)?;
    /// HtmlReport::new("out/report.html").example(&data.source(0), data.spans(0, &tokenizer)?);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn example(&mut self, source: &str, spans: Vec<Span>) -> &mut Self {
        self.content.examples.push(Example { source: source.to_owned(), spans });
        self
    }

    /// Adds an answer of the model. Answers to the same question are shown side by side, each with
    /// its `when`, such as "Before training".
    pub fn answer(&mut self, when: &str, question: &str, answer: &str) -> &mut Self {
        let [when, question, answer] = [when, question, answer].map(str::to_owned);
        self.content.answers.push(Answer { when, question, answer });
        self
    }

    /// Writes the page now.
    ///
    /// # Errors
    /// [`TrainError::Io`] if it cannot be written.
    pub fn write(&mut self) -> Result<(), TrainError> {
        self.written = Some(Instant::now());
        let io = |error| TrainError::io(&self.path, error);
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        burn_lora_io::replace(&self.path, self.content.html().as_bytes()).map_err(io)
    }

    fn write_if_due(&mut self) -> Result<(), TrainError> {
        match self.written {
            Some(written) if written.elapsed() < self.every => Ok(()),
            _ => self.write(),
        }
    }
}

impl Observer for HtmlReport {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        let log = self.path.with_file_name("metrics.jsonl");
        self.content.state = State::Running(run.clone(), Instant::now());
        self.content.curves = match run.resumed_from {
            Some(step) if log.exists() => Curves::read(&log, step)?,
            _ => Curves::default(),
        };
        self.write()
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        self.content.curves.step(metrics);
        self.write_if_due()
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        self.content.curves.evaluated(metrics);
        self.write_if_due()
    }

    fn finished(&mut self, run: &Finished) -> Result<(), TrainError> {
        let started = self.content.state.run().cloned().unwrap_or_default();
        self.content.state = State::Ended(started, run.clone());
        self.write()
    }

    fn failed(&mut self, error: &TrainError) {
        let state = &self.content.state;
        let (started, seconds) = (state.run().cloned().unwrap_or_default(), state.seconds());
        self.content.state = State::Failed(started, seconds, error.to_string());
        if let Err(error) = self.write() {
            burn_lora_io::warn!("the report does not show how the run has ended: {error}");
        }
    }
}
