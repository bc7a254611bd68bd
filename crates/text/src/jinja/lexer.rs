//! Lexer of templates, with Jinja2's whitespace rules: `trim_blocks`, `lstrip_blocks`, and no
//! newline at the end of the template.

use super::error::{Error, Result, fail};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Text of the template.
    Text(Arc<str>),
    /// `{{` and `}}`.
    PrintStart,
    PrintEnd,
    /// `{%` and `%}`.
    BlockStart,
    BlockEnd,
    Name(Arc<str>),
    String(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
}

/// Operators, longer ones first.
const OPERATORS: [&str; 27] = [
    "**", "//", "==", "!=", "<=", ">=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";", "!",
];

/// Splits a template into tokens, with their lines.
pub fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, tokens: vec![], line: 1, line_start: true };
    while !lexer.rest.is_empty() {
        let line = lexer.line;
        lexer.text().map_err(|error| error.at(line))?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<(Token, usize)>,
    line: usize,
    /// `true` if the last token ended a line.
    line_start: bool,
}

/// Returns `true` for Python's whitespace characters.
pub fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&char)
}

impl<'a> Lexer<'a> {
    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    /// Skips bytes, and returns them.
    fn skip(&mut self, bytes: usize) -> &'a str {
        let (skipped, rest) = self.rest.split_at(bytes);
        self.line += skipped.bytes().filter(|byte| *byte == b'\n').count();
        self.line_start = skipped.ends_with('\n');
        self.rest = rest;
        skipped
    }

    fn skip_space(&mut self) {
        let bytes = self.rest.len() - self.rest.trim_start_matches(is_space).len();
        if bytes > 0 {
            self.skip(bytes);
        }
    }

    /// Reads text up to a tag, and the tag.
    fn text(&mut self) -> Result<()> {
        let starts = self.rest.match_indices('{').map(|(at, _)| at);
        let tag = |at: &usize| matches!(self.rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
        let Some(at) = starts.into_iter().find(tag) else {
            let text = self.skip(self.rest.len());
            self.push(Token::Text(text.into()));
            return Ok(());
        };
        let kind = self.rest.as_bytes()[at + 1];
        let sign = self.rest.as_bytes().get(at + 2).copied().filter(|sign| b"-+".contains(sign));
        self.before_tag(at, kind, sign);
        self.skip(2 + usize::from(sign.is_some()));
        match kind {
            b'{' => self.code(Token::PrintStart, Token::PrintEnd, "}}"),
            b'#' => self.comment(),
            _ => match self.raw_start() {
                Some(bytes) => self.raw(bytes),
                None => self.code(Token::BlockStart, Token::BlockEnd, "%}"),
            },
        }
    }

    /// Adds the text before a tag, without the whitespace that the tag removes.
    fn before_tag(&mut self, at: usize, kind: u8, sign: Option<u8>) {
        let line_start = self.line_start;
        let line = self.line;
        let text = if at > 0 { self.skip(at) } else { "" };
        let mut kept = text;
        if sign == Some(b'-') {
            kept = text.trim_end_matches(is_space);
        } else if sign.is_none() && kind != b'{' {
            let start = text.rfind('\n').map_or(0, |newline| newline + 1);
            if (start > 0 || line_start) && text[start..].chars().all(is_space) {
                kept = &text[..start];
            }
        }
        if !kept.is_empty() {
            self.tokens.push((Token::Text(kept.into()), line));
        }
    }

    /// Length of the end of a block or a comment, if it is next.
    fn end_length(rest: &str, end: &str) -> Option<usize> {
        if let Some(after) = rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(end)) {
            return Some(rest.len() - after.trim_start_matches(is_space).len());
        }
        if end != "}}" && rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(end)) {
            return Some(3);
        }
        let after = rest.strip_prefix(end)?;
        Some(2 + usize::from(end != "}}" && after.starts_with('\n')))
    }

    fn comment(&mut self) -> Result<()> {
        let Some(at) = self.rest.find("#}") else { fail!("Missing end of comment tag") };
        let sign = self.rest[..at].ends_with(['-', '+']);
        self.skip(at - usize::from(sign));
        let bytes = Self::end_length(self.rest, "#}").unwrap_or(2);
        self.skip(bytes);
        Ok(())
    }

    /// Length of `raw %}`, if it is next.
    fn raw_start(&self) -> Option<usize> {
        let rest = self.rest.trim_start_matches(is_space).strip_prefix("raw")?;
        let rest = rest.trim_start_matches(is_space);
        let after = match rest.strip_prefix("-%}") {
            Some(after) => after.trim_start_matches(is_space),
            None => rest.strip_prefix("%}")?,
        };
        Some(self.rest.len() - after.len())
    }

    fn raw(&mut self, start: usize) -> Result<()> {
        self.skip(start);
        let rest = self.rest;
        if rest.is_empty() {
            return Ok(());
        }
        for (at, _) in rest.match_indices("{%") {
            let inner = &rest[at + 2..];
            let sign = inner.bytes().next().filter(|sign| b"-+".contains(sign));
            let inner = &inner[usize::from(sign.is_some())..];
            let Some(inner) = inner.trim_start_matches(is_space).strip_prefix("endraw") else {
                continue;
            };
            let inner = inner.trim_start_matches(is_space);
            let Some(length) = Self::end_length(inner, "%}") else { continue };
            let end = rest.len() - inner.len() + length;
            self.before_tag(at, b'%', sign);
            self.skip(end - at);
            return Ok(());
        }
        fail!("Missing end of raw directive");
    }

    /// Reads the tokens of a tag.
    fn code(&mut self, start: Token, end: Token, mark: &str) -> Result<()> {
        self.push(start);
        // Closing braces of a dictionary may precede the end of the tag.
        let mut open: Vec<&str> = vec![];
        loop {
            self.skip_space();
            if open.is_empty()
                && let Some(length) = Self::end_length(self.rest, mark)
            {
                self.push(end);
                self.skip(length);
                return Ok(());
            }
            let Some(char) = self.rest.chars().next() else { fail!("a tag does not end") };
            if char.is_ascii_digit() {
                self.number()?;
            } else if char == '\'' || char == '"' {
                self.string(char)?;
            } else if char == '_' || char.is_alphanumeric() {
                let name = |char: char| char != '_' && !char.is_alphanumeric();
                let length = self.rest.find(name).unwrap_or(self.rest.len());
                let name = self.skip(length);
                self.push(Token::Name(name.into()));
            } else {
                let found = OPERATORS.into_iter().find(|operator| self.rest.starts_with(operator));
                let Some(operator) = found else {
                    fail!("syntax error: unexpected character {char:?}")
                };
                match operator {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" if open.pop() != Some(operator) => {
                        fail!("syntax error: unexpected `{operator}`")
                    }
                    "!" => fail!("syntax error: unexpected `!`"),
                    _ => (),
                }
                self.push(Token::Operator(operator));
                self.skip(operator.len());
            }
        }
    }

    fn number(&mut self) -> Result<()> {
        let bytes = self.rest.as_bytes();
        let digits = |from: usize, digit: fn(&u8) -> bool| {
            let count =
                bytes[from..].iter().take_while(|byte| digit(byte) || **byte == b'_').count();
            // A trailing underscore belongs to the next token.
            from + count
                - bytes[from..from + count].iter().rev().take_while(|b| **b == b'_').count()
        };
        let radix = match bytes.get(1).map(u8::to_ascii_lowercase).filter(|_| bytes[0] == b'0') {
            Some(b'x') => 16,
            Some(b'o') => 8,
            Some(b'b') => 2,
            _ => 10,
        };
        if radix != 10 {
            let end = digits(2, u8::is_ascii_hexdigit);
            let text = self.skip(end)[2..].replace('_', "");
            let Ok(number) = i128::from_str_radix(&text, radix) else {
                fail!("syntax error: `{text}` is no number")
            };
            self.push(Token::Int(number));
            return Ok(());
        }
        let whole = digits(0, u8::is_ascii_digit);
        let mut end = whole;
        // `a.0.1` has two indices.
        let index = matches!(self.tokens.last(), Some((Token::Operator("."), _)));
        if !index {
            if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
                end = digits(end + 1, u8::is_ascii_digit);
            }
            if bytes.get(end).is_some_and(|byte| byte.eq_ignore_ascii_case(&b'e')) {
                let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
                    end = digits(end + 1 + sign, u8::is_ascii_digit);
                }
            }
        }
        let text = self.skip(end).replace('_', "");
        if end > whole {
            self.push(Token::Float(text.parse().unwrap_or(f64::INFINITY)));
            return Ok(());
        }
        let Ok(number) = text.parse() else { fail!("{text} is too large a number") };
        self.push(Token::Int(number));
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let mut escaped = false;
        let end = self.rest[1..].find(|char: char| {
            let end = char == quote && !escaped;
            escaped = char == '\\' && !escaped;
            end
        });
        let Some(end) = end else { fail!("syntax error: a string does not end") };
        let line = self.line;
        let text = self.skip(end + 2);
        let text = unescape(&text[1..=end])?;
        self.tokens.push((Token::String(text), line));
        Ok(())
    }
}

/// Decodes the escapes of a Python string literal.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut chars = rest[at + 1..].chars();
        let Some(char) = chars.next() else { break };
        rest = chars.as_str();
        let mut number = |digits: usize| {
            let bad = || Error::new(format!("syntax error: the escape \\{char} is cut off"));
            let hex = rest.get(..digits).ok_or_else(bad)?;
            rest = &rest[digits..];
            let code = u32::from_str_radix(hex, 16).map_err(|_| bad())?;
            char::from_u32(code)
                .ok_or_else(|| Error::new(format!("syntax error: \\{char}{hex} is no character")))
        };
        match char {
            '\n' => (),
            '\\' | '\'' | '"' => out.push(char),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            'x' => out.push(number(2)?),
            'u' => out.push(number(4)?),
            'U' => out.push(number(8)?),
            'N' => fail!("syntax error: the escape \\N is not supported"),
            '0'..='7' => {
                let octal = |char: char| !('0'..='7').contains(&char);
                let more = rest.find(octal).unwrap_or(rest.len()).min(2);
                let digits = format!("{char}{}", &rest[..more]);
                rest = &rest[more..];
                let code = u32::from_str_radix(&digits, 8).unwrap_or_default();
                out.extend(char::from_u32(code));
            }
            // Python keeps unknown escapes.
            _ => out.extend(['\\', char]),
        }
    }
    out.push_str(rest);
    Ok(out)
}
