//! Entries inserted into the text of a JSON file, in the style of those that are there. All other bytes
//! stay.

use serde_json::Value;
use std::ops::Range;

/// Spaces of a level where the text shows none.
const INDENT: &str = "  ";

/// Text of a JSON file, which has been read as one before, and its insertions.
pub struct Splice(String);

/// Member of an object, or item of an array (without a key).
struct Item {
    key: Option<String>,
    /// Key and value.
    all: Range<usize>,
    value: Range<usize>,
}

/// Object or array of a text.
struct Container {
    items: Vec<Item>,
    /// Position of the closing bracket.
    end: usize,
}

impl Splice {
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn into_text(self) -> String {
        self.0
    }

    /// Inserts an object into an array, a member of the outermost object that is created where it is
    /// missing. It goes before the first item for which `follows` is `true`, else to the end.
    pub fn insert_item(
        &mut self,
        name: &str,
        fields: &[(&str, Value)],
        follows: impl Fn(&Value) -> bool,
    ) {
        let list = self.member_or(name, "[]");
        let list = container(&self.0, list.start);
        let at = list.items.iter().position(|item| {
            serde_json::from_str(&self.0[item.value.clone()]).is_ok_and(|value| follows(&value))
        });
        let like = at.or(list.items.len().checked_sub(1)).map(|at| &list.items[at]);
        let text = self.object(like, fields, 2);
        self.insert(&list, at, &text, 2);
    }

    /// Replaces the item of an array for which `is` is `true`.
    pub fn replace_item(
        &mut self,
        name: &str,
        fields: &[(&str, Value)],
        is: impl Fn(&Value) -> bool,
    ) {
        let Some(list) = member(&container(&self.0, 0), name) else { return };
        let list = container(&self.0, list.start);
        let found = list.items.iter().find(|item| {
            serde_json::from_str(&self.0[item.value.clone()]).is_ok_and(|value| is(&value))
        });
        let Some(item) = found else { return };
        let text = self.object(Some(item), fields, 2);
        self.0.replace_range(item.value.clone(), &text);
    }

    /// Sets a member of an object, which is itself a member of the outermost one, to an object.
    pub fn set_object(&mut self, name: &str, key: &str, fields: &[(&str, Value)]) {
        let map = self.member_or(name, "{}");
        let map = container(&self.0, map.start);
        if let Some(value) = member(&map, key) {
            let like = Item { key: None, all: value.clone(), value: value.clone() };
            let text = self.object(Some(&like), fields, 2);
            return self.0.replace_range(value, &text);
        }
        let text = self.object(map.items.last(), fields, 2);
        let text = format!("{}{}{text}", quoted(key), self.colon(&map));
        self.insert(&map, None, &text, 2);
    }

    /// Adds a member to the outermost object.
    pub fn insert_member(&mut self, key: &str, value: &str) {
        let root = container(&self.0, 0);
        let text = format!("{}{}{value}", quoted(key), self.colon(&root));
        self.insert(&root, None, &text, 1);
    }

    /// Value of a member of the outermost object, which is added where it is missing.
    fn member_or(&mut self, name: &str, empty: &str) -> Range<usize> {
        if member(&container(&self.0, 0), name).is_none() {
            self.insert_member(name, empty);
        }
        member(&container(&self.0, 0), name).expect("it was just added")
    }

    /// Inserts an item, by default after the last one, of a container on a level.
    fn insert(&mut self, container: &Container, before: Option<usize>, text: &str, level: usize) {
        let (at, text) = match (before, container.items.as_slice()) {
            (Some(at), items) => {
                let at = items[at].all.start;
                (at, format!("{text},{}", self.space_before(at)))
            }
            (None, [.., last]) => {
                (last.all.end, format!(",{}{text}", self.space_before(last.all.start)))
            }
            (None, []) => {
                let (inner, outer) = (self.line(level), self.line(level - 1));
                let start = container.end - self.space_before(container.end).len();
                self.0.replace_range(start..container.end, "");
                (start, format!("{inner}{text}{outer}"))
            }
        };
        self.0.insert_str(at, &text);
    }

    /// Text of an object with these fields, in the style of another one.
    fn object(&self, like: Option<&Item>, fields: &[(&str, Value)], level: usize) -> String {
        let like = like.filter(|item| self.0[item.value.clone()].starts_with('{'));
        let known = like.map(|item| container(&self.0, item.value.start));
        let has = |known: &Container| fields.iter().all(|(name, _)| member(known, name).is_some());
        if let (Some(item), Some(known)) = (like, known.filter(has)) {
            let (mut text, mut from) = (String::new(), item.value.start);
            for part in known.items {
                let field = fields.iter().find(|(name, _)| part.key.as_deref() == Some(name));
                let Some((_, value)) = field else { continue };
                text += &self.0[from..part.value.start];
                text += &value.to_string();
                from = part.value.end;
            }
            return text + &self.0[from..item.value.end];
        }
        let (inner, outer) = (self.line(level + 1), self.line(level));
        let space = if inner.is_empty() { " " } else { &*inner };
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| format!("{}: {value}", quoted(name))).collect();
        format!("{{{inner}{}{outer}}}", fields.join(&format!(",{space}")))
    }

    /// White space before a position.
    fn space_before(&self, at: usize) -> String {
        let text = &self.0[..at];
        text[text.trim_end().len()..].to_owned()
    }

    /// What begins a line of a level; empty if the text is on one line.
    fn line(&self, level: usize) -> String {
        let first = container(&self.0, 0).items.first().map(|item| item.all.start);
        let space = first.map(|at| self.space_before(at)).unwrap_or_default();
        match space.rfind('\n') {
            None => String::new(),
            Some(at) => {
                let (end, indent) = space.split_at(at + 1);
                let indent = if indent.is_empty() { INDENT } else { indent };
                format!("{end}{}", indent.repeat(level))
            }
        }
    }

    /// What stands between key and value.
    fn colon(&self, like: &Container) -> String {
        let known = like.items.first().and_then(|item| {
            let between = &self.0[item.all.start..item.value.start];
            Some(between[between.rfind(':')?..].to_owned())
        });
        known.unwrap_or_else(|| ": ".into())
    }
}

/// Value of a member; of several with one name the last, as JSON is read.
fn member(container: &Container, name: &str) -> Option<Range<usize>> {
    let mut items = container.items.iter().rev();
    items.find(|item| item.key.as_deref() == Some(name)).map(|item| item.value.clone())
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Reads the object or array that begins at a position or after it.
fn container(text: &str, at: usize) -> Container {
    let skip = |at: usize| text.len() - text[at..].trim_start().len();
    let start = text[at..].find(['{', '[']).expect("it is an object or an array") + at;
    let object = text.as_bytes()[start] == b'{';
    let (mut items, mut at) = (vec![], skip(start + 1));
    while !matches!(text.as_bytes()[at], b'}' | b']') {
        let (from, mut key) = (at, None);
        if object {
            let end = end_of_value(text, at);
            key = serde_json::from_str(&text[at..end]).ok();
            at = skip(skip(end) + 1);
        }
        let end = end_of_value(text, at);
        items.push(Item { key, all: from..end, value: at..end });
        at = skip(end);
        if text.as_bytes()[at] == b',' {
            at = skip(at + 1);
        }
    }
    Container { items, end: at }
}

/// End of the value that begins at a position.
fn end_of_value(text: &str, start: usize) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in text.bytes().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                quoted = !quoted;
                if !quoted && depth == 0 {
                    return at + 1;
                }
            }
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}
