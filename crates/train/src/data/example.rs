//! An example before tokenization, and the columns that it is made of.

use super::{
    conversation::{self, Roles},
    read::Record,
    values::items,
};
use burn_lora_text::{ChatValue as Value, Message};

/// An example before tokenization.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Example {
    Text(String),
    PromptCompletion {
        prompt: String,
        completion: String,
    },
    Chat(Chat),
    /// The better and the worse answer.
    Pair(Box<[Example; 2]>),
    /// Words, and as many labels.
    Words {
        words: Vec<String>,
        labels: Vec<Value>,
    },
}

/// A conversation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chat {
    pub messages: Vec<Message>,
    /// For each message whether it is trained on, if the data says so.
    pub train: Vec<Option<bool>>,
    /// Number of messages in the prompt, if the data divides them.
    pub prompt: Option<usize>,
    pub tools: Option<Vec<Value>>,
}

impl Chat {
    /// Adds the instructions that a record has in a column of their own.
    pub(super) fn instructed(mut self, record: &Record) -> Result<Self, String> {
        let system = match record.get("system") {
            None | Some(Value::Null) => return Ok(self),
            Some(_) => text(record, "system")?,
        };
        if system.trim().is_empty() {
            return Ok(self);
        }
        match self.messages.first() {
            Some(first) if first.role() == "system" => {
                if first.text().as_deref() != Some(system) {
                    return Err(
                        "its column `system` says other than its first message, which is of \
                                role `system`, too: leave one of them out"
                            .into(),
                    );
                }
            }
            _ => {
                self.messages.insert(0, Message::system(system));
                self.train.insert(0, None);
                self.prompt = self.prompt.map(|prompt| prompt + 1);
            }
        }
        Ok(self)
    }
}

pub(super) fn column<'a>(record: &'a Record, name: &str) -> Result<&'a Value, String> {
    record.get(name).ok_or_else(|| {
        let found: Vec<_> = record.keys().map(|name| format!("`{name}`")).collect();
        format!("no column `{name}` (there: {})", found.join(", "))
    })
}

pub(super) fn text<'a>(record: &'a Record, name: &str) -> Result<&'a str, String> {
    match column(record, name)? {
        Value::Text(text) => Ok(text),
        other => Err(format!("`{name}` is {}, but must be text", other.kind())),
    }
}

pub(super) fn answer(
    record: &Record,
    prompt: String,
    completion: String,
    chat: bool,
) -> Result<Example, String> {
    if !chat {
        return Ok(Example::PromptCompletion { prompt, completion });
    }
    let mut messages = history(record)?;
    messages.push(Message::user(prompt));
    let prompt = messages.len();
    messages.push(Message::assistant(completion));
    let train = vec![None; messages.len()];
    let chat = Chat { messages, train, prompt: Some(prompt), tools: tools(record)? };
    chat.instructed(record).map(Example::Chat)
}

/// Parses earlier questions and answers, in the format of LLaMA-Factory.
fn history(record: &Record) -> Result<Vec<Message>, String> {
    let pairs = match record.get("history") {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Text(text)) if text.trim().is_empty() => return Ok(vec![]),
        Some(pairs) => items("history", pairs)?,
    };
    let wrong = Err("`history` must be a list of pairs, each of a question and an answer".into());
    let mut messages = vec![];
    for pair in &pairs {
        let Value::List(pair) = pair else { return wrong };
        let [Value::Text(question), Value::Text(answer)] = pair.as_slice() else { return wrong };
        messages.push(Message::user(question.as_str()));
        messages.push(Message::assistant(answer.as_str()));
    }
    Ok(messages)
}

pub(super) fn list(
    record: &Record,
    name: &str,
    roles: &Roles,
) -> Result<(Vec<Message>, Vec<Option<bool>>), String> {
    let items = items(name, column(record, name)?)?;
    if items.is_empty() {
        return Err(format!("`{name}` has no messages"));
    }
    let messages = items.into_iter().enumerate().map(|(number, item)| {
        conversation::message(item, roles)
            .map_err(|reason| format!("`{name}`, message {}: {reason}", number + 1))
    });
    messages.collect::<Result<Vec<_>, _>>().map(|messages| messages.into_iter().unzip())
}

pub(super) fn tools(record: &Record) -> Result<Option<Vec<Value>>, String> {
    match record.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(tools) => items("tools", tools).map(Some),
    }
}
