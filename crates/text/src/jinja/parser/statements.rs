//! Parser of statements.

use super::{
    super::{
        ast::{Expression, For, Kind, Macro, Name, Statement, Target},
        error::{Result, fail},
        lexer::Token,
    },
    Parser,
};

impl Parser {
    /// Parses statements up to a tag with one of these names, which is read, too; without names up
    /// to the end.
    pub(super) fn body(&mut self, ends: &[&'static str]) -> Result<(Vec<Statement>, &'static str)> {
        self.deeper(|parser| parser.statements(ends))
    }

    fn statements(&mut self, ends: &[&'static str]) -> Result<(Vec<Statement>, &'static str)> {
        let mut body = vec![];
        loop {
            let line = self.line();
            let kind = match self.next() {
                None if ends.is_empty() => return Ok((body, "")),
                None => fail!("syntax error: `{}` is missing", ends[ends.len() - 1]),
                Some(Token::Text(text)) => Kind::Text(text),
                Some(Token::PrintStart) => {
                    let expression = self.tuple(true, &[])?;
                    match self.next() {
                        Some(Token::PrintEnd) => Kind::Print(expression),
                        _ => {
                            self.at -= 1;
                            return self.unexpected("`}}`");
                        }
                    }
                }
                _ => {
                    let tag = self.name("the name of a tag")?;
                    if let Some(end) = ends.iter().find(|end| ***end == *tag) {
                        return Ok((body, end));
                    }
                    self.tag(&tag)?
                }
            };
            body.push(Statement { line, kind });
        }
    }

    /// Parses the body of a tag up to its end, which is read, too.
    fn until(&mut self, end: &'static str) -> Result<Vec<Statement>> {
        self.block_end()?;
        let (body, _) = self.body(&[end])?;
        // The name of a block may be repeated.
        if end == "endblock" && matches!(self.peek(), Some(Token::Name(_))) {
            self.at += 1;
        }
        self.block_end()?;
        Ok(body)
    }

    fn tag(&mut self, tag: &str) -> Result<Kind> {
        Ok(match tag {
            "if" => self.condition()?,
            "for" => self.repeat()?,
            "set" => self.set()?,
            "with" => {
                let mut variables = vec![];
                while self.peek() != Some(&Token::BlockEnd) {
                    if !variables.is_empty() {
                        self.expect(",")?;
                    }
                    let target = self.target(false)?;
                    self.expect("=")?;
                    variables.push((target, self.expression()?));
                }
                Kind::With(variables, self.until("endwith")?)
            }
            "filter" => {
                let filters = self.filters(true)?;
                Kind::Filter(filters, self.until("endfilter")?)
            }
            "macro" => {
                let name = self.name("the name of a macro")?;
                self.expect("(")?;
                Kind::Macro(self.macro_of(name, "endmacro")?)
            }
            "call" => {
                // Its optional parameters come first.
                let start = self.at;
                let parameters = self.skip("(");
                let head = if parameters { Some(self.parameters()?) } else { None };
                let call = self.expression()?;
                if !matches!(call, Expression::Call(..)) {
                    self.at = start;
                    return self.unexpected("a call");
                }
                let body = self.macro_body("caller".into(), head.unwrap_or_default(), "endcall")?;
                Kind::CallBlock(call, body)
            }
            "generation" => Kind::Generation(self.until("endgeneration")?),
            "block" => {
                self.name("the name of a block")?;
                while let Some(Token::Name(_)) = self.peek() {
                    self.at += 1;
                }
                Kind::Scope(self.until("endblock")?)
            }
            "autoescape" => {
                if !self.skip_name("false") {
                    fail!("`autoescape` is not supported");
                }
                Kind::Scope(self.until("endautoescape")?)
            }
            "break" => self.block_end().map(|()| Kind::Break)?,
            "continue" => self.block_end().map(|()| Kind::Continue)?,
            "include" | "import" | "from" | "extends" => {
                fail!("`{tag}` is not supported: a chat template is a single file")
            }
            _ => fail!("syntax error: unknown statement {tag}"),
        })
    }

    fn condition(&mut self) -> Result<Kind> {
        let mut branches = vec![];
        loop {
            let test = self.tuple(false, &[])?;
            self.block_end()?;
            let (body, end) = self.body(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match end {
                "elif" => continue,
                "else" => return Ok(Kind::If(branches, self.until("endif")?)),
                _ => {
                    self.block_end()?;
                    return Ok(Kind::If(branches, vec![]));
                }
            }
        }
    }

    fn repeat(&mut self) -> Result<Kind> {
        let target = self.target(false)?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let over = self.tuple(false, &["recursive"])?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.block_end()?;
        let (body, end) = self.body(&["else", "endfor"])?;
        let otherwise = if end == "else" {
            self.until("endfor")?
        } else {
            self.block_end()?;
            vec![]
        };
        Ok(Kind::For(For { target, over, condition, recursive, body, otherwise }))
    }

    fn set(&mut self) -> Result<Kind> {
        let target = self.target(true)?;
        if self.skip("=") {
            let value = self.tuple(true, &[])?;
            self.block_end()?;
            return Ok(Kind::Set(target, value));
        }
        let filters = self.filters(false)?;
        Ok(Kind::SetBlock(target, filters, self.until("endset")?))
    }

    /// Parses the target of an assignment: a name, the attribute of a namespace, or several names.
    fn target(&mut self, attributes: bool) -> Result<Target> {
        let first = self.target_item(attributes)?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip(",") {
            let end = self.is("=") || self.is_name("in") || self.is(")");
            if end || self.peek() == Some(&Token::BlockEnd) {
                break;
            }
            items.push(self.target_item(attributes)?);
        }
        Ok(Target::Tuple(items))
    }

    fn target_item(&mut self, attributes: bool) -> Result<Target> {
        if self.skip("(") || self.skip("[") {
            let target = self.deeper(|parser| parser.target(attributes))?;
            if !self.skip("]") {
                self.expect(")")?;
            }
            return Ok(target);
        }
        let name = self.name("a name")?;
        if ["true", "false", "none", "True", "False", "None"].contains(&&*name) {
            fail!("syntax error: {name} cannot be assigned to");
        }
        if attributes && self.skip(".") {
            return Ok(Target::Attribute(name, self.name("the name of an attribute")?));
        }
        Ok(Target::Name(name))
    }

    fn parameters(&mut self) -> Result<Vec<(Name, Option<Expression>)>> {
        let mut parameters: Vec<(Name, Option<Expression>)> = vec![];
        while !self.skip(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            let name = self.name("the name of a parameter")?;
            let default = if self.skip("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some())
            {
                fail!(
                    "syntax error: parameter {name} without a default follows one with a default"
                );
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    fn macro_of(&mut self, name: Name, end: &'static str) -> Result<Macro> {
        let parameters = self.parameters()?;
        self.macro_body(name, parameters, end)
    }

    fn macro_body(
        &mut self,
        name: Name,
        parameters: Vec<(Name, Option<Expression>)>,
        end: &'static str,
    ) -> Result<Macro> {
        self.uses.push([false; 3]);
        let body = self.until(end)?;
        let uses = self.uses.pop().unwrap_or_default();
        let [caller, varargs, kwargs] = uses;
        // The body of a call within a macro reads that macro's variables.
        if end == "endcall"
            && let Some(outer) = self.uses.last_mut()
        {
            outer.iter_mut().zip(uses).for_each(|(outer, used)| *outer |= used);
        }
        Ok(Macro { name, parameters, body, caller, varargs, kwargs })
    }
}
