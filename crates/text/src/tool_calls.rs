//! Calls of tools in a model's answer.

use crate::value::ChatValue;
use serde_json::value::RawValue;

/// A function that an answer calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Name of the function.
    pub name: String,
    /// Arguments, an object of JSON.
    pub arguments: String,
}

/// What begins a call in Hermes' format, and what ends it.
const CALL: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// An answer as it comes, which may call tools: in the format of Hermes and Qwen (`<tool_call>` around an object of JSON),
/// of Llama 3 (an answer that is an object with `name` and `parameters`), or of Mistral (a list of such objects, or names
/// followed by arguments). Their special tokens (`<|python_tag|>`, `[TOOL_CALLS]`) are no part of the text.
///
/// ```
/// use burn_lora_text::ToolStream;
///
/// let mut answer = ToolStream::new(["weather"]);
/// assert_eq!(answer.push("I look. <tool"), "I look. ");
/// assert_eq!(answer.push("_call>{\"name\": \"weather\", \"arguments\": {\"at\": \"Oslo\"}}</tool_call>"), "");
/// let (rest, calls) = answer.finish();
/// assert_eq!(rest, "");
/// assert_eq!((&*calls[0].name, &*calls[0].arguments), ("weather", "{\"at\": \"Oslo\"}"));
/// ```
#[derive(Clone, Debug)]
pub struct ToolStream {
    tools: Vec<String>,
    held: String,
    /// Whether text was released: what follows is no call that is the whole answer.
    released: bool,
}

impl ToolStream {
    /// Creates an empty answer that may call these functions.
    pub fn new<S: Into<String>>(tools: impl IntoIterator<Item = S>) -> Self {
        let tools = tools.into_iter().map(Into::into).collect();
        Self { tools, held: String::new(), released: false }
    }

    /// Adds text, and returns what is certain to be no part of a call: all of it, if there are no functions.
    pub fn push(&mut self, text: &str) -> String {
        if self.tools.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        let start = self.held.trim_start();
        if !self.released && self.may_be_whole(start) {
            return String::new();
        }
        let begins = |(at, _): &(usize, char)| {
            let rest = &self.held[*at..];
            rest.starts_with(CALL[0]) || CALL[0].starts_with(rest)
        };
        let at = self.held.char_indices().find(begins).map_or(self.held.len(), |(at, _)| at);
        let rest = self.held.split_off(at);
        let text = std::mem::replace(&mut self.held, rest);
        self.released |= !text.trim().is_empty();
        text
    }

    /// Ends the answer: the rest of its text, and the functions that it calls, in order.
    pub fn finish(self) -> (String, Vec<ToolCall>) {
        if !self.released
            && let Some(calls) = self.whole(self.held.trim())
        {
            return (String::new(), calls);
        }
        let (mut text, mut calls, mut rest) = (String::new(), vec![], &*self.held);
        while let Some((before, after)) = rest.split_once(CALL[0]) {
            // The end may be left out where the answer was cut.
            let (body, after) = after.split_once(CALL[1]).unwrap_or((after, ""));
            match serde_json::from_str(body).ok().and_then(call) {
                Some(found) => calls.push(found),
                // As the model wrote it, for a reader to see.
                None => return (self.held, vec![]),
            }
            text.push_str(before);
            rest = after;
        }
        text.push_str(rest);
        let text = if calls.is_empty() { text } else { text.trim_end().to_owned() };
        (text, calls)
    }

    /// Whether an answer that begins so may be calls and nothing else.
    fn may_be_whole(&self, start: &str) -> bool {
        let named = |tool: &String| match start.strip_prefix(tool.as_str()) {
            Some(rest) => rest.trim_start().is_empty() || rest.trim_start().starts_with('{'),
            None => tool.starts_with(start),
        };
        start.is_empty() || start.starts_with(['{', '[']) || self.tools.iter().any(named)
    }

    /// The calls of an answer that is nothing else.
    fn whole(&self, text: &str) -> Option<Vec<ToolCall>> {
        let known = |call: &ToolCall| self.tools.contains(&call.name);
        let calls = if text.starts_with('[') {
            let list: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            list.into_iter().map(call).collect::<Option<Vec<_>>>()?
        } else if text.starts_with('{') {
            // Llama 3 writes several with semicolons between them.
            let mut rest = text;
            let mut calls = vec![];
            while !rest.is_empty() {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
                calls.push(call(values.next()?.ok()?)?);
                rest = rest[values.byte_offset()..].trim_start_matches([';', ' ', '\n']);
            }
            calls
        } else {
            // Mistral writes several one after the other.
            let mut rest = text;
            let mut calls = vec![];
            while !rest.is_empty() {
                let (name, arguments) = rest.split_at(rest.find('{')?);
                let mut values =
                    serde_json::Deserializer::from_str(arguments).into_iter::<&RawValue>();
                let found = object(values.next()?.ok()?.get())?;
                calls.push(ToolCall { name: name.trim().to_owned(), arguments: found });
                rest = arguments[values.byte_offset()..].trim_start();
            }
            calls
        };
        (!calls.is_empty() && calls.iter().all(known)).then_some(calls)
    }
}

/// The call that an object is.
fn call(value: &RawValue) -> Option<ToolCall> {
    #[derive(serde::Deserialize)]
    struct Written<'a> {
        name: String,
        #[serde(borrow, alias = "parameters")]
        arguments: Option<&'a RawValue>,
    }
    let Written { name, arguments } = serde_json::from_str(value.get()).ok()?;
    let arguments = arguments.map_or("{}", RawValue::get);
    // Some write them as text that is JSON.
    let text = serde_json::from_str::<String>(arguments);
    Some(ToolCall { name, arguments: object(text.as_deref().unwrap_or(arguments))? })
}

/// Text that is an object of JSON.
fn object(text: &str) -> Option<String> {
    let value: ChatValue = serde_json::from_str(text).ok()?;
    matches!(value, ChatValue::Map(_)).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of an answer and the calls in it, which do not depend on the parts in which it comes.
    fn answer(text: &str) -> (String, Vec<(String, String)>) {
        let characters: Vec<char> = text.chars().collect();
        let by = |size: usize| {
            let mut stream = ToolStream::new(["now", "weather"]);
            let parts = characters.chunks(size).map(|part| part.iter().collect::<String>());
            let mut found: String = parts.map(|part| stream.push(&part)).collect();
            let (rest, calls) = stream.finish();
            found.push_str(&rest);
            let calls = calls.into_iter().map(|call| (call.name, call.arguments)).collect();
            (found.trim_end().to_owned(), calls)
        };
        let whole = by(characters.len());
        [1, 2, 5].into_iter().for_each(|size| assert_eq!(by(size), whole, "{size}"));
        whole
    }

    #[test]
    fn formats() {
        let one = |name: &str, arguments: &str| vec![(name.to_owned(), arguments.to_owned())];
        let cases = [
            (
                "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
                "",
                one("now", "{}"),
            ),
            (
                "{\"name\": \"weather\", \"parameters\": {\"at\": \"Oslo\"}}",
                "",
                one("weather", "{\"at\": \"Oslo\"}"),
            ),
            ("[{\"name\": \"now\", \"arguments\": {\"a\": 1}}]", "", one("now", "{\"a\": 1}")),
            ("weather{\"at\": \"Oslo\"}", "", one("weather", "{\"at\": \"Oslo\"}")),
            (
                "Let me see.\n<tool_call>{\"name\": \"now\"}</tool_call>",
                "Let me see.",
                one("now", "{}"),
            ),
            (
                "{\"name\": \"now\", \"parameters\": \"{\\\"a\\\": 1}\"}",
                "",
                one("now", "{\"a\": 1}"),
            ),
            // No calls: another function, no JSON, text that goes on.
            ("{\"name\": \"other\", \"parameters\": {}}", "=", vec![]),
            ("{\"name\": \"now\",", "=", vec![]),
            ("now it rains", "=", vec![]),
            ("a < b <tool_cal", "=", vec![]),
            ("<tool_call>{\"nam\": 1}</tool_call> x", "=", vec![]),
        ];
        for (text, left, calls) in cases {
            let left = if left == "=" { text } else { left };
            assert_eq!(answer(text), (left.to_owned(), calls), "{text}");
        }
        let two =
            "{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"weather\", \"parameters\": {}}";
        assert_eq!(answer(two).1.len(), 2);
        assert_eq!(answer("now{}weather{\"at\": \"Oslo\"}").1.len(), 2);
        // An answer that begins with the name of a function is held back no longer than that.
        assert_eq!(ToolStream::new(["I"]).push("I think"), "I think");
    }
}
