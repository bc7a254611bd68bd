//! Content of the page: what is known of a run so far.

use super::text::{count, escape};
use crate::{
    data::Span,
    error::TrainError,
    watch::{EvalMetrics, Finished, MetricsLog, Record, Started, StepMetrics},
};
use std::{collections::BTreeMap, path::Path, time::Instant};

pub(super) type Points = Vec<(f64, f64)>;

#[derive(Debug, Default)]
pub(super) struct Content {
    pub title: String,
    pub state: State,
    pub curves: Curves,
    pub facts: Vec<(String, Vec<(String, String)>)>,
    pub settings: Option<String>,
    pub examples: Vec<Example>,
    pub answers: Vec<Answer>,
}

#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Waiting,
    Running(Started, Instant),
    Ended(Started, Finished),
    Failed(Started, f64, String),
}

impl State {
    pub fn run(&self) -> Option<&Started> {
        match self {
            Self::Waiting => None,
            Self::Running(run, _) | Self::Ended(run, _) | Self::Failed(run, ..) => Some(run),
        }
    }

    /// Seconds since the start or the resumption.
    pub fn seconds(&self) -> f64 {
        match self {
            Self::Waiting => 0.0,
            Self::Running(_, begin) => begin.elapsed().as_secs_f64(),
            Self::Ended(_, finished) => finished.seconds,
            Self::Failed(_, seconds, _) => *seconds,
        }
    }
}

/// The metrics by name, over the steps.
#[derive(Debug, Default)]
pub(super) struct Curves {
    pub training: BTreeMap<String, Points>,
    pub validation: BTreeMap<String, Points>,
    pub evaluations: Vec<EvalMetrics>,
    pub last: Option<StepMetrics>,
}

impl Curves {
    pub const LOSS: &str = "loss";
    pub const GRAD_NORM: &str = "grad_norm";
    pub const LEARNING_RATE: &str = "learning_rate";
    pub const SPEED: &str = "tokens_per_second";
    pub const MEMORY: &str = "memory";
    /// What is no metric of the objective.
    pub const OWN: [&str; 5] =
        [Self::LOSS, Self::GRAD_NORM, Self::LEARNING_RATE, Self::SPEED, Self::MEMORY];

    /// Reads a log up to a step.
    pub fn read(log: &Path, last_step: usize) -> Result<Self, TrainError> {
        let mut curves = Self::default();
        for record in MetricsLog::read(log)?.iter().filter(|record| record.step() <= last_step) {
            match record {
                Record::Step(metrics) => curves.step(metrics),
                Record::Evaluation(metrics) => curves.evaluated(metrics),
            }
        }
        Ok(curves)
    }

    pub fn step(&mut self, metrics: &StepMetrics) {
        let own = [
            (Self::LOSS, metrics.loss),
            (Self::GRAD_NORM, metrics.grad_norm),
            (Self::LEARNING_RATE, metrics.learning_rate),
            (Self::SPEED, metrics.tokens_per_second),
        ];
        let memory = metrics.memory.map(|bytes| (Self::MEMORY, bytes as f64));
        for (name, value) in own.into_iter().chain(memory).chain(metrics.metrics.iter()) {
            push(&mut self.training, name, metrics.step, value);
        }
        self.last = Some(metrics.clone());
    }

    pub fn evaluated(&mut self, metrics: &EvalMetrics) {
        for (name, value) in [(Self::LOSS, metrics.loss)].into_iter().chain(metrics.metrics.iter())
        {
            push(&mut self.validation, name, metrics.step, value);
        }
        self.evaluations.push(metrics.clone());
    }

    pub fn training(&self, name: &str) -> &[(f64, f64)] {
        self.training.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn validation(&self, name: &str) -> &[(f64, f64)] {
        self.validation.get(name).map_or(&[], Vec::as_slice)
    }
}

fn push(curves: &mut BTreeMap<String, Points>, name: &str, step: usize, value: f64) {
    let point = (step as f64, value);
    match curves.get_mut(name) {
        Some(points) => points.push(point),
        None => _ = curves.insert(name.to_owned(), vec![point]),
    }
}

#[derive(Debug)]
pub(super) struct Example {
    pub source: String,
    pub spans: Vec<Span>,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub when: String,
    pub question: String,
    pub answer: String,
}

/// Characters of a text that are shown; of a longer one the first and the last half.
const SHOWN: usize = 4000;
/// Spans of an example that are shown.
const SPANS: usize = 100;

/// Escapes a text of any length; of a long one, the middle is left out.
pub(super) fn excerpt(text: &str) -> String {
    let length = text.chars().count();
    if length <= SHOWN {
        return escape(text);
    }
    let at = |chars: usize| text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    let (begin, end) = (at(SHOWN / 2), at(length - SHOWN / 2));
    let left_out = count(length - SHOWN);
    format!(
        "{}<i class=\"cut\"> … {left_out} characters … </i>{}",
        escape(&text[..begin]),
        escape(&text[end..])
    )
}

impl Example {
    /// The text with its trained tokens marked.
    pub fn html(&self) -> String {
        let mut out = String::new();
        for span in self.spans.iter().filter(|span| !span.text.is_empty()).take(SPANS) {
            let mut text = excerpt(&span.text);
            if span.special {
                text = format!("<span class=\"special\">{text}</span>");
            }
            out += &if span.trained { format!("<mark>{text}</mark>") } else { text };
        }
        if self.spans.len() > SPANS {
            out += "<i class=\"cut\"> … </i>";
        }
        out
    }
}
