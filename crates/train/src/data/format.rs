//! Formats of examples: their columns, and the meaning of these.

use super::{
    conversation::Roles,
    example::{Chat, Example, answer, column, list, text, tools},
    preference,
    read::Record,
    words,
};
use burn_lora_text::ChatValue as Value;
use serde::{Deserialize, Serialize};

/// Format of examples, by their columns.
///
/// ```
/// use burn_lora_train::data::Format;
///
/// assert_eq!(serde_json::to_string(&Format::PromptCompletion)?, r#""prompt_completion""#);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `text`: plain text.
    Text,
    /// `prompt` and `completion`: both text, or both lists of messages. If text becomes messages,
    /// `system` may hold instructions, and `history` earlier pairs of a question and an answer.
    PromptCompletion,
    /// `messages`: a conversation, as a list of `{"role", "content"}`. `tools` may hold the schemas
    /// of functions that the assistant may call, `system` instructions.
    Messages,
    /// `instruction`, `output` and optionally `input`; `system` and `history` as with prompts.
    Alpaca,
    /// `conversations`: a conversation, as a list of `{"from", "value"}`; `tools` and `system` as with
    /// messages.
    ShareGpt,
    /// `chosen` and `rejected`: the better and the worse answer to a `prompt`, as with prompts and completions.
    /// Without `prompt`, it is what both begin with.
    Preference,
    /// `tokens`, a list of words, and `labels` or `ner_tags`, a list with a label for each: numbers or names, null or -100
    /// for none. The first token of a word has the label of the word, and its other tokens none.
    Tokens,
}

/// Columns that formats read, and to which others can be mapped.
pub(crate) const COLUMNS: [&str; 16] = [
    "text",
    "prompt",
    "completion",
    "messages",
    "tools",
    "instruction",
    "input",
    "output",
    "conversations",
    "system",
    "history",
    "chosen",
    "rejected",
    "tokens",
    "labels",
    "ner_tags",
];

/// Examples that do not mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Pair,
    Words,
}

impl Format {
    /// Detects the format of a record. Some data sets have the same examples in several formats:
    /// the most informative comes first.
    pub(crate) fn detect(record: &Record) -> Result<Self, String> {
        let has = |names: &[&str]| names.iter().all(|name| record.contains_key(*name));
        let formats = [
            Self::Messages,
            Self::ShareGpt,
            Self::PromptCompletion,
            Self::Preference,
            Self::Alpaca,
            Self::Tokens,
            Self::Text,
        ];
        let fits = |format: &Self| {
            has(format.required()) && (*format != Self::Tokens || words::labels(record).is_some())
        };
        formats.into_iter().find(fits).ok_or_else(|| {
            let found: Vec<_> = record.keys().map(|name| format!("`{name}`")).collect();
            let found = if found.is_empty() { "none".into() } else { found.join(", ") };
            format!(
                "no known format has these columns ({found}). Known are `messages`, \
                 `conversations`, `prompt` and `completion`, `chosen` and `rejected`, `instruction` \
                 and `output`, `tokens` and `ner_tags`, and `text`; other names can be mapped to these by `column`"
            )
        })
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["text"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Messages => &["messages"],
            Self::Alpaca => &["instruction", "output"],
            Self::ShareGpt => &["conversations"],
            Self::Preference => &["chosen", "rejected"],
            Self::Tokens => &["tokens"],
        }
    }

    /// What its examples are.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Preference => Kind::Pair,
            Self::Tokens => Kind::Words,
            _ => Kind::Text,
        }
    }

    /// Returns `true` if a column of a record is read. With `chat`, text becomes messages.
    pub(crate) fn reads(self, record: &Record, column: &str, chat: bool) -> bool {
        let is_list = |name| matches!(record.get(name), Some(Value::List(_)));
        let lists = || is_list("prompt") || is_list("chosen");
        let messages = match self {
            Self::Text | Self::Tokens => false,
            Self::Messages | Self::ShareGpt => true,
            Self::PromptCompletion | Self::Preference => chat || lists(),
            Self::Alpaca => chat,
        };
        match column {
            "tools" | "system" => messages,
            "history" => chat && !matches!(self, Self::Messages | Self::ShareGpt) && !lists(),
            "input" => self == Self::Alpaca,
            "labels" | "ner_tags" => self == Self::Tokens && words::labels(record) == Some(column),
            "prompt" => matches!(self, Self::PromptCompletion | Self::Preference),
            _ => self.required().contains(&column),
        }
    }

    /// Parses the example of a record. With `chat`, a text to answer becomes the message of a user.
    pub(crate) fn example(
        self,
        record: &Record,
        roles: &Roles,
        chat: bool,
    ) -> Result<Example, String> {
        match self {
            Self::Text => Ok(Example::Text(text(record, "text")?.into())),
            Self::PromptCompletion => prompt_completion(record, roles, chat),
            Self::Messages => conversation(record, "messages", roles),
            Self::Alpaca => alpaca(record, chat),
            Self::ShareGpt => conversation(record, "conversations", roles),
            Self::Preference => preference::example(record, roles, chat),
            Self::Tokens => {
                words::words(record).map(|(words, labels)| Example::Words { words, labels })
            }
        }
    }
}

fn prompt_completion(record: &Record, roles: &Roles, chat: bool) -> Result<Example, String> {
    if let (Value::List(_), Value::List(_)) =
        (column(record, "prompt")?, column(record, "completion")?)
    {
        let (mut messages, mut train) = list(record, "prompt", roles)?;
        let prompt = messages.len();
        let completion = list(record, "completion", roles)?;
        messages.extend(completion.0);
        train.extend(completion.1);
        let tools = tools(record)?;
        let chat = Chat { messages, train, prompt: Some(prompt), tools };
        return chat.instructed(record).map(Example::Chat);
    }
    let same = "; both are text, or both are lists of messages";
    let text = |name| text(record, name).map_err(|reason| reason + same);
    answer(record, text("prompt")?.into(), text("completion")?.into(), chat)
}

/// Builds the prompt with the wording of Stanford's data set, in its column `text`.
fn alpaca(record: &Record, chat: bool) -> Result<Example, String> {
    let instruction = text(record, "instruction")?;
    let input = match record.get("input") {
        None | Some(Value::Null) => "",
        Some(_) => text(record, "input")?,
    };
    let output = text(record, "output")?.to_owned();
    let prompt = match (chat, input.trim().is_empty()) {
        (true, true) => instruction.to_owned(),
        (true, false) => format!("{instruction}\n\n{input}"),
        (false, true) => format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        ),
        (false, false) => format!(
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
    };
    answer(record, prompt, output, chat)
}

fn conversation(record: &Record, name: &str, roles: &Roles) -> Result<Example, String> {
    let (messages, train) = list(record, name, roles)?;
    let chat = Chat { messages, train, prompt: None, tools: tools(record)? };
    chat.instructed(record).map(Example::Chat)
}
