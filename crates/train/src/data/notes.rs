//! Oddities of examples that are no errors: reported once per file for each kind.

use burn_lora_io::{escaped, listed};
use burn_lora_text::Tokenizer;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// An oddity of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Oddity {
    /// It was truncated to the maximum length.
    Truncated,
    /// The answer begins within a token of the prompt.
    Swallowed,
    /// Nothing but the end of a text or turn is trained on.
    OnlyEnd,
    /// No text or turn that is trained on has an end.
    NoEnd,
    /// A turn ends with a token at which generation does not stop.
    UnknownEnd(u32),
}

/// Oddities of a file: the number of examples with each, and the line of the first.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    seen: BTreeMap<Oddity, (usize, usize)>,
    /// Columns with values that are not read.
    unused: BTreeSet<String>,
    /// Columns that others are mapped from, not found so far.
    missing: BTreeSet<String>,
}

impl Notes {
    pub fn new(mapped: impl IntoIterator<Item = String>) -> Self {
        Self { missing: mapped.into_iter().collect(), ..Self::default() }
    }

    pub fn add(&mut self, oddity: Oddity, line: usize) {
        self.seen.entry(oddity).or_insert((0, line)).0 += 1;
    }

    pub fn unused(&mut self, column: &str) {
        if !self.unused.contains(column) {
            self.unused.insert(column.to_owned());
        }
    }

    pub fn found(&mut self, column: &str) {
        self.missing.remove(column);
    }

    /// Warns of the oddities of a file.
    pub fn report(self, path: &Path, tokenizer: &Tokenizer, max_length: Option<usize>) {
        let path = path.display().to_string();
        let path = escaped(&path);
        for (oddity, (count, line)) in self.seen {
            let what = match oddity {
                Oddity::Truncated => format!(
                    "longer than `max_length`, {} tokens: the rest is not trained on. Raise it, or \
                     choose by `truncation` what becomes of such examples",
                    max_length.unwrap_or_default()
                ),
                Oddity::Swallowed => "the answer begins within a token that the prompt begins, which \
                                      is not trained on: end the prompt where a token ends (a space \
                                      belongs to the answer)"
                    .into(),
                Oddity::OnlyEnd => "only the end is trained on: the answer is empty. Leave such \
                                    examples out, if the model is not to learn to say nothing"
                    .into(),
                Oddity::NoEnd => "no end is trained on, so that the model does not learn to stop: the \
                                  chat template writes no special token after an answer, or the \
                                  tokenizer has no end of a text (`eos_token` in \
                                  tokenizer_config.json)"
                    .into(),
                Oddity::UnknownEnd(id) => format!(
                    "a turn ends with `{}` (token {id}), which is none of the model's end tokens: it is \
                     named in generation_config.json beside the adapter. Programs that do not read that \
                     file have to be told to stop there",
                    escaped(&tokenizer.id_to_token(id).unwrap_or_default())
                ),
            };
            let more = match count - 1 {
                0 => String::new(),
                1 => " and 1 more example".into(),
                more => format!(" and {more} more examples"),
            };
            burn_lora_io::warn!("{path}:{line}{more}: {what}");
        }
        if !self.unused.is_empty() {
            let names = listed(&self.unused);
            burn_lora_io::warn!(
                "{path}: these columns are not used: {names}. Others are mapped to those of the format by \
                 `column`; `system`, `history` and `tools` are read where there are messages \
                 (`apply_chat_template` makes them of text)"
            );
        }
        if !self.missing.is_empty() {
            let names = listed(&self.missing);
            burn_lora_io::warn!(
                "{path}: no example has these columns, which others are mapped to: {names}"
            );
        }
    }
}
