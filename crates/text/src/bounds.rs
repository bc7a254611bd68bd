//! Turns of the assistant in the text of a conversation, located by two means: what changes in the
//! text when the message is replaced, and the template's generation prompt.

use crate::{
    chat::{ChatOptions, Message},
    tokenizer::Tokenizer,
    value::ChatValue,
};
use std::ops::Range;

/// A conversation and its text.
pub(crate) struct Bounds<'a> {
    pub tokenizer: &'a Tokenizer,
    pub messages: &'a [Message],
    pub options: &'a ChatOptions,
    pub text: &'a str,
}

/// The part of a text that changes when a message is replaced.
#[derive(Clone, Copy)]
struct Changed {
    /// Start of the change, if the whole content of the message was replaced.
    start: Option<usize>,
    /// End of the change.
    end: usize,
    /// `true` if the message kept its form, on which the text after it may depend.
    sure: bool,
}

/// Start of a turn's content, after its header.
struct Start {
    at: usize,
    /// `true` if the text before the turn equals the rendering without the message, so that a
    /// rendering up to the message ends where the turn ends.
    exact: bool,
}

impl Bounds<'_> {
    /// Returns the byte range of a message after the header of its turn, including the end of the
    /// turn; it starts at `from` or later. The error says what the template does.
    ///
    /// The header is the generation prompt, as far as the template wrote it: a prompt that opens
    /// the reasoning is longer than the header of an answer without reasoning.
    pub fn turn(&self, message: usize, from: usize) -> Result<Range<usize>, String> {
        let until = self.render(&self.messages[..=message], false);
        let said = self.messages[message].text().unwrap_or_default();
        let said = said.trim();
        // Computed on demand: most templates do not need it.
        let mut known = None;
        let mut changed = || {
            *known.get_or_insert_with(|| {
                let here = self.changed(self.messages, message, None, self.text);
                if here.is_some_and(|here| here.start.is_some()) {
                    return here;
                }
                // The messages after it may not allow another content.
                let until = until.as_deref()?;
                let alone = self.changed(&self.messages[..=message], message, Some(false), until);
                match (here, alone.filter(|alone| self.text.starts_with(&until[..alone.end]))) {
                    (Some(here), Some(alone)) => Some(Changed { start: alone.start, ..here }),
                    (here, alone) => here.or(alone),
                }
            })
        };

        let start = self.start(message, from, said, &mut changed)?;
        let whole = until.as_deref().filter(|until| start.exact && self.text.starts_with(*until));
        let end = match whole {
            Some(until) if until.len() == self.text.len() || ends_with_mark(until) => until.len(),
            // Some templates write the end of a turn only if messages follow.
            Some(until) => {
                let end = changed().and_then(|changed| self.end(message, start.at, changed).ok());
                end.map_or(until.len(), |end| end.max(until.len()))
            }
            None => self.end(message, start.at, changed().ok_or_else(|| self.unwritten())?)?,
        };
        let turn = start.at..end;
        if turn.is_empty() || turn.start < from {
            return Err("the template writes nothing for it".into());
        }
        if whole.is_none() || !self.text[turn.clone()].trim_start().starts_with(said) {
            self.check(message, &turn)?;
        }
        Ok(turn)
    }

    /// Returns the end of the turn's header.
    fn start(
        &self,
        message: usize,
        from: usize,
        said: &str,
        changed: &mut impl FnMut() -> Option<Changed>,
    ) -> Result<Start, String> {
        let prompted = self.render(&self.messages[..message], true);
        let prompted = prompted.as_deref().filter(|prompted| prompted.len() >= from);
        let own = prompted.and_then(|prompted| self.text.strip_prefix(prompted));
        if let (Some(prompted), Some(own)) = (prompted, own)
            // A short one may be a part of the header.
            && said.len() > 8
            && own.trim_start().starts_with(said)
        {
            return Ok(Start { at: prompted.len(), exact: true });
        }
        let here = self.prompt(&self.messages[..message]);
        let elsewhere = || self.prompt(&[Message::user("?")]);
        let (before, header) = match &here {
            Some((before, header)) => (Some(before.as_str()), header.clone()),
            None => (None, elsewhere().ok_or_else(|| self.unwritten())?.1),
        };
        let before = before.filter(|before| before.len() >= from && self.text.starts_with(*before));
        let exact = before.is_some();
        let first = before.map_or(from, str::len);
        if exact && !header.is_empty() && self.text[first..].starts_with(&header) {
            return Ok(Start { at: first + header.len(), exact });
        }
        let content = changed().and_then(|changed| changed.start).filter(|at| *at >= first);
        // The place with the longest match of the prompt; the last one of several.
        let last = content.unwrap_or(first);
        let places = (first..=last).filter(|place| self.text.is_char_boundary(*place));
        let written = places.map(|place| (self.written(&header, place, content), place));
        let written = written.max().filter(|(length, _)| *length > 0);
        // Untrusted text may look like a prompt, where it is unknown what precedes the message.
        let near = |end: usize| {
            exact
                || content.is_some_and(|at| {
                    let between = self.text.get(end..at).unwrap_or_default();
                    !has_words(between) || self.between(&header).as_deref() == Some(between)
                })
        };
        match written.map(|(length, place)| place + length).filter(|end| near(*end)) {
            Some(at) => Ok(Start { at, exact }),
            None => match content {
                Some(at) => Ok(Start { at, exact }),
                None => Err(self.unwritten()),
            },
        }
    }

    /// Text between the generation prompt and an answer.
    fn between(&self, header: &str) -> Option<String> {
        let mark = '\u{e000}';
        let messages = [Message::user("?"), Message::assistant(mark.to_string())];
        let text = self.render(&messages, false)?;
        let (before, _) = text.split_once(mark)?;
        before.rsplit_once(header).map(|(_, between)| between.to_owned())
    }

    /// Length of the generation prompt that is written at a place: all of it, or a part that ends
    /// with a mark or a line and does not overlap the content of the message.
    fn written(&self, header: &str, place: usize, content: Option<usize>) -> usize {
        let text = &self.text[place..];
        let mut length = common_prefix(header, text);
        if length == header.len() {
            return length;
        }
        if let Some(content) = content {
            length = length.min(content - place);
        }
        length = outside(header, length).min(outside(text, length));
        let ends = |end: &usize| header[..*end].ends_with(['>', ']', '\n']);
        (1..=length).rev().filter(|end| header.is_char_boundary(*end)).find(ends).unwrap_or(0)
    }

    /// Returns the end of the turn: after the text that follows the message, as far as that is the
    /// same for other continuations of the conversation.
    fn end(&self, message: usize, start: usize, changed: Changed) -> Result<usize, String> {
        let said = changed.end.max(start);
        let tail = &self.text[said..];
        let until = &self.messages[..=message];
        let next = self.messages.get(message + 1).map(Message::role);
        let with = |role: &str| [until, &[Message::new(role, "?")]].concat();
        let mut ways = vec![(until.to_vec(), false), (until.to_vec(), true)];
        ways.extend(
            ["user", "assistant"].iter().filter(|r| next != Some(**r)).map(|r| (with(r), false)),
        );
        let opener = [&self.messages[..message], &[Message::user("?")]];
        let opener = opener.into_iter().filter_map(|messages| self.prompt(messages));
        let opener =
            opener.map(|(_, opener)| opener).find(|opener| !opener.is_empty()).unwrap_or_default();
        let mut shortest: Option<usize> = None;
        for (messages, prompt) in ways {
            let Some(text) = self.render(&messages, prompt) else { continue };
            if text == self.text {
                continue;
            }
            let Some(other) = self.changed(&messages, message, Some(prompt), &text) else {
                continue;
            };
            let other = &text[other.end..];
            let mut length = common_prefix(tail, other);
            length = outside(tail, length).min(outside(other, length));
            if length < other.len() || prompt {
                length = without_opener(&tail[..length], &opener);
            }
            if !tail[..length].trim().is_empty() {
                shortest = Some(shortest.map_or(length, |shortest| shortest.min(length)));
            }
        }
        match shortest {
            Some(length) => Ok(said + length),
            None if next.is_none() && !has_words(tail) => Ok(self.text.len()),
            None if !tail.trim().is_empty() && (!changed.sure || next.is_none()) => Err(
                "the template writes it otherwise when other messages follow, and what ends it \
                     cannot be told"
                    .into(),
            ),
            None => Ok(said),
        }
    }

    /// Checks that the turn is the message's own: it contains no other message.
    fn check(&self, message: usize, turn: &Range<usize>) -> Result<(), String> {
        let found = &self.text[turn.clone()];
        let own = self.messages[message].fields().values().map(strings).collect::<String>();
        for (other, said) in self.messages.iter().enumerate() {
            let said = said.text().unwrap_or_default();
            let said = said.trim();
            if other != message && said.len() > 9 && found.contains(said) && !own.contains(said) {
                return Err(format!("the template writes it around message {other}"));
            }
        }
        Ok(())
    }

    fn unwritten(&self) -> String {
        "the template does not write it after its generation prompt, and writes no other text when it \
         says something else"
            .into()
    }

    /// Renders messages without a generation prompt (as far as that is the same with one), and
    /// returns this text and the prompt.
    fn prompt(&self, messages: &[Message]) -> Option<(String, String)> {
        let closed = self.render(messages, false)?;
        let mut before = self.render(messages, true)?;
        let at = common_prefix(&closed, &before);
        let at = if at == closed.len() { at } else { outside(&before, at) };
        let header = before.split_off(at);
        Some((before, header))
    }

    /// Finds what changes in the text of messages when one of them is replaced.
    fn changed(
        &self,
        messages: &[Message],
        message: usize,
        prompt: Option<bool>,
        text: &str,
    ) -> Option<Changed> {
        // A private-use character that the text does not contain.
        let mark = ('\u{e000}'..'\u{f8ff}').find(|mark| !text.contains(*mark))?.to_string();
        let change = |said: &Message| {
            let mut messages = messages.to_vec();
            messages[message] = said.clone();
            let new = match prompt {
                Some(prompt) => self.render(&messages, prompt)?,
                None => self.tokenizer.apply_chat_template(&messages, self.options).ok()?,
            };
            let start = common_prefix(text, &new);
            let end = text.len() - common_suffix(&text[start..], &new[start..]);
            (new != text).then(|| (outside(text, start), end.max(start)))
        };
        let own = &messages[message];
        let bare = Message::new(own.role(), mark.as_str());
        let kept = own.clone().with("content", mark.as_str());
        let whole = kept == bare;
        let kept = change(&kept);
        let bare = if whole { kept } else { change(&bare) };
        match (kept, bare) {
            (Some((first, last)), Some((start, end))) => {
                Some(Changed { start: Some(start.min(first)), end: end.min(last), sure: true })
            }
            // Other fields may be written before the content.
            (Some((_, end)), None) => Some(Changed { start: None, end, sure: true }),
            (None, bare) => {
                let start = bare.map(|(start, _)| start);
                let calls = own.get("tool_calls").map(|calls| with_arguments(calls, &mark));
                let called = calls.and_then(|calls| change(&own.clone().with("tool_calls", calls)));
                let end = called.or(bare).map(|(_, end)| end)?;
                Some(Changed { start, end, sure: called.is_some() })
            }
        }
    }

    fn render(&self, messages: &[Message], prompt: bool) -> Option<String> {
        let options = self.options.clone().add_generation_prompt(prompt);
        self.tokenizer.apply_chat_template(messages, &options).ok()
    }
}

/// Replaces the arguments of tool calls.
fn with_arguments(calls: &ChatValue, mark: &str) -> ChatValue {
    match calls {
        ChatValue::List(calls) => {
            ChatValue::List(calls.iter().map(|call| with_arguments(call, mark)).collect())
        }
        ChatValue::Map(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                let other = match (name.as_str(), value) {
                    ("arguments", ChatValue::Text(_)) => mark.into(),
                    ("arguments", _) => {
                        ChatValue::Map([("a".to_owned(), ChatValue::from(mark))].into())
                    }
                    _ => with_arguments(value, mark),
                };
                (name.clone(), other)
            });
            ChatValue::Map(fields.collect())
        }
        other => other.clone(),
    }
}

/// Concatenates all text within a value.
fn strings(value: &ChatValue) -> String {
    match value {
        ChatValue::Text(text) => format!("{text}\n"),
        ChatValue::List(items) => items.iter().map(strings).collect(),
        ChatValue::Map(fields) => fields.values().map(strings).collect(),
        _ => String::new(),
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    let mut length = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(length) || !b.is_char_boundary(length) {
        length -= 1;
    }
    length
}

fn common_suffix(a: &str, b: &str) -> usize {
    let mut length = a.bytes().rev().zip(b.bytes().rev()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(a.len() - length) || !b.is_char_boundary(b.len() - length) {
        length -= 1;
    }
    length
}

/// Moves a place in a text to the beginning of the mark (`<|im_start|>`, `[INST]`) that contains
/// it.
fn outside(text: &str, at: usize) -> usize {
    let open = text[..at].rfind(['<', '[', '>', ']', ' ', '\n', '\t']);
    let Some(open) = open.filter(|open| matches!(text.as_bytes()[*open], b'<' | b'[')) else {
        return at;
    };
    let close = if text.as_bytes()[open] == b'<' { '>' } else { ']' };
    let end = text[at..].find(|char: char| char == close || char.is_whitespace());
    match end {
        Some(end) if text[at + end..].starts_with(close) => open,
        // A mark that is cut off.
        None if at == text.len() => open,
        _ => at,
    }
}

/// Length of a text without the beginning of a generation prompt at its end.
fn without_opener(text: &str, opener: &str) -> usize {
    let starts = text.char_indices().map(|(at, _)| at);
    starts.clone().find(|at| opener.starts_with(&text[*at..])).unwrap_or(text.len())
}

fn ends_with_mark(text: &str) -> bool {
    text.trim_end().ends_with(['>', ']'])
}

/// Returns `true` if there is text outside of marks.
fn has_words(text: &str) -> bool {
    let mut close = None;
    text.chars().any(|char| {
        match (char, close) {
            ('<', None) => close = Some('>'),
            ('[', None) => close = Some(']'),
            (char, Some(end)) if char == end => close = None,
            (char, None) => return char.is_alphanumeric(),
            _ => (),
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_whole() {
        let text = "a < b <|end|><|start|>[INST] [1, 2]";
        let at = |part: &str| text.find(part).unwrap();
        assert_eq!(outside(text, at("end")), at("<|end"));
        assert_eq!(outside(text, at("<|start")), at("<|start"));
        assert_eq!(outside(text, at("NST")), at("[INST"));
        for place in ["b <|", "1, 2", "2]"] {
            assert_eq!(outside(text, at(place)), at(place), "{place}");
        }
        assert_eq!(outside("x<|st", 5), 1);
        assert!(has_words("<|end|>a") && !has_words("<|end|>\n[x]"));
        assert_eq!(without_opener("<end>\n<start>", "<start>assistant"), 6);
        assert_eq!(common_suffix("é", "©"), 0);
    }
}
