//! Metrics of generated text: the model answers the prompts of the validation data.

use super::{Goal, Metric};
use crate::{
    data::{Dataset, Sample},
    error::TrainError,
};
use burn_lora_llama::{Generate, GenerateConfig, GenerateExt};
use burn_lora_text::Tokenizer;
use std::ops::{ControlFlow, Range};

/// Answer of a model to a prompt of an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Index of the example in the data.
    pub example: usize,
    /// Text before the answer, with special tokens.
    pub prompt: String,
    /// Text that the example has as the answer, without special tokens.
    pub expected: String,
    /// Text that the model generated, without special tokens.
    pub given: String,
}

/// Metrics of the answers that a model generates: one prompt for each stretch of tokens that is
/// trained on, such as a completion, or a turn of the assistant after all turns before it.
///
/// The answers are generated once for all scores.
pub struct Answers<'a> {
    config: GenerateConfig,
    examples: Option<usize>,
    batch_size: usize,
    scores: Vec<Score<'a>>,
}

struct Score<'a> {
    name: String,
    goal: Goal,
    of: Box<ScoreFn<'a>>,
}

type ScoreFn<'a> = dyn Fn(&[Answer]) -> f64 + 'a;

impl<'a> Answers<'a> {
    /// Prompts per batch of generation, if not set.
    const BATCH_SIZE: usize = 64;

    /// Creates answers without a score. An answer ends where generated text does, and where the
    /// turns of the data do.
    pub fn new(config: GenerateConfig) -> Self {
        Self { config, examples: None, batch_size: Self::BATCH_SIZE, scores: vec![] }
    }

    /// Sets the maximum number of examples that are answered, spread evenly over the data.
    pub fn examples(mut self, count: usize) -> Self {
        self.examples = Some(count);
        self
    }

    /// Sets the number of prompts that are answered at once; 64 if not set.
    pub fn batch_size(mut self, prompts: usize) -> Self {
        self.batch_size = prompts;
        self
    }

    /// Adds `exact_match`: the fraction of answers that are the text of the example, without regard
    /// to white space around it.
    pub fn exact_match(self) -> Self {
        self.score("exact_match", Goal::Higher, |answers| {
            let same = |answer: &&Answer| answer.given.trim() == answer.expected.trim();
            answers.iter().filter(same).count() as f64 / answers.len() as f64
        })
    }

    /// Adds a score: a function of all answers.
    pub fn score(
        mut self,
        name: impl Into<String>,
        goal: Goal,
        of: impl Fn(&[Answer]) -> f64 + 'a,
    ) -> Self {
        self.scores.push(Score { name: name.into(), goal, of: Box::new(of) });
        self
    }

    /// Generates the answers, in the order of the examples.
    ///
    /// # Errors
    /// - [`TrainError::Setting`] if the data do not come from texts, or there is nothing to answer
    /// - [`TrainError::Example`] if an example is trained on from its first token, so that it has no
    ///   prompt
    /// - as [`GenerateExt::generate_text`]
    pub fn of<M: Generate>(&self, model: &M, data: &Dataset) -> Result<Vec<Answer>, TrainError> {
        let Some(tokenizer) = data.tokenizer() else {
            let reason = "the data are tokens: answers need data that a tokenizer has read";
            return Err(TrainError::setting("metric", "of answers", reason));
        };
        let count = self.examples.unwrap_or(usize::MAX).min(data.len());
        let mut questions = vec![];
        for number in 0..count {
            let example = number * data.len() / count;
            let sample = data.sample(example);
            for answer in trained(&sample) {
                if answer.start == 0 {
                    let reason = "all of it is trained on, so that there is no prompt to answer: \
                        metrics of answers need a prompt before what is trained on";
                    return Err(data.wrong(example, reason));
                }
                let prompt = sample.ids[..answer.start].to_vec();
                let expected = tokenizer.decode(&sample.ids[answer], true)?;
                questions.push((example, prompt, expected));
            }
        }
        if questions.is_empty() || self.batch_size == 0 {
            let reason = "there has to be an example to answer, and one at a time at least";
            return Err(TrainError::setting("metric", "of no answer", reason));
        }
        let given = self.generate(model, tokenizer, data, &questions)?;
        let answers = questions.into_iter().zip(given);
        let answers = answers.map(|((example, prompt, expected), given)| {
            Ok(Answer { example, prompt: tokenizer.decode(&prompt, false)?, expected, given })
        });
        answers.collect()
    }

    /// Generates the answer to each question. Prompts of about the same length go together: there
    /// is less padding.
    fn generate<M: Generate>(
        &self,
        model: &M,
        tokenizer: &Tokenizer,
        data: &Dataset,
        questions: &[(usize, Vec<u32>, String)],
    ) -> Result<Vec<String>, TrainError> {
        let ends = data.ends();
        let config = ends.fold(self.config.clone(), |config, end| config.stop_token(end));
        let mut order: Vec<_> = (0..questions.len()).collect();
        order.sort_by_key(|place| questions[*place].1.len());
        let mut given = vec![String::new(); questions.len()];
        for places in order.chunks(self.batch_size) {
            let prompts: Vec<_> = places.iter().map(|place| questions[*place].1.clone()).collect();
            let go_on = |_: usize, _: &str| ControlFlow::Continue(());
            let found = model.continue_text(tokenizer, &prompts, &config, go_on)?;
            for (place, found) in places.iter().zip(found) {
                given[*place] = found.text;
            }
        }
        Ok(given)
    }
}

impl<M: Generate> Metric<M> for Answers<'_> {
    fn names(&self) -> Vec<(String, Goal)> {
        self.scores.iter().map(|score| (score.name.clone(), score.goal)).collect()
    }

    fn measure(&self, model: &M, data: &Dataset) -> Result<Vec<f64>, TrainError> {
        let answers = self.of(model, data)?;
        Ok(self.scores.iter().map(|score| (score.of)(&answers)).collect())
    }
}

/// Stretches of tokens that are trained on.
fn trained(sample: &Sample) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = vec![];
    for (place, _) in sample.loss_mask.iter().enumerate().filter(|(_, trained)| **trained) {
        match found.last_mut() {
            Some(last) if last.end == place => last.end += 1,
            _ => found.push(place..place + 1),
        }
    }
    found
}
