//! Parser from tokens to statements and expressions, in the grammar of Jinja2.

mod expressions;
mod statements;

use super::{
    ast::{Name, Statement},
    error::{Result, fail},
    lexer::Token,
};

/// Maximal nesting of expressions and statements. Each level takes stack, here and when rendering.
const DEPTH: usize = 100;

pub fn parse(tokens: Vec<(Token, usize)>) -> Result<Vec<Statement>> {
    let mut parser = Parser { tokens, at: 0, depth: 0, uses: vec![] };
    let (body, end) = parser.body(&[]).map_err(|error| error.at(parser.line()))?;
    debug_assert!(end.is_empty());
    Ok(body)
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// For each macro being parsed: which of `caller`, `varargs` and `kwargs` it reads.
    uses: Vec<[bool; 3]>,
}

const SPECIAL: [&str; 3] = ["caller", "varargs", "kwargs"];

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn line(&self) -> usize {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(1, |(_, line)| *line)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).map(|(token, _)| token.clone());
        self.at += 1;
        token
    }

    fn is(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Operator(found)) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if &**found == name)
    }

    fn skip(&mut self, operator: &str) -> bool {
        let found = self.is(operator);
        self.at += usize::from(found);
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, operator: &str) -> Result<()> {
        if self.skip(operator) { Ok(()) } else { self.unexpected(&format!("`{operator}`")) }
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T> {
        let found = match self.peek() {
            None => "the end of the template".to_owned(),
            Some(Token::Text(_)) => "text".into(),
            Some(Token::PrintStart) => "`{{`".into(),
            Some(Token::PrintEnd) => "`}}`".into(),
            Some(Token::BlockStart) => "`{%`".into(),
            Some(Token::BlockEnd) => "`%}`".into(),
            Some(Token::Name(name)) => format!("`{name}`"),
            Some(Token::String(_)) => "a string".into(),
            Some(Token::Int(_) | Token::Float(_)) => "a number".into(),
            Some(Token::Operator(operator)) => format!("`{operator}`"),
        };
        fail!("syntax error: expected {expected}, found {found}")
    }

    fn name(&mut self, what: &str) -> Result<Name> {
        match self.peek() {
            Some(Token::Name(name)) if !name.starts_with(|char: char| char.is_ascii_digit()) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected(what),
        }
    }

    fn block_end(&mut self) -> Result<()> {
        match self.peek() {
            Some(Token::BlockEnd) => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("`%}`"),
        }
    }

    /// Parses something one level deeper.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > DEPTH {
            fail!("nested deeper than {DEPTH} levels");
        }
        let result = read(self);
        self.depth -= 1;
        result
    }
}
