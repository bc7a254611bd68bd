//! From tokens to statements and expressions, in the grammar of Jinja2.

use super::{
    Result,
    ast::{
        Arguments, Call, Comparison, Expression, For, Kind, Macro, Name, Operator, Statement,
        Target,
    },
    fail,
    lexer::Token,
    value::Value,
};

/// How deep expressions and statements may be nested. Each level takes stack, here and when rendering.
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
    /// For each macro that is read: which of `caller`, `varargs` and `kwargs` it reads.
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

    /// Reads what is one level deeper.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > DEPTH {
            fail!("nested deeper than {DEPTH} levels");
        }
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Statements up to a tag of one of these names, which is read, too. Without names: up to the end.
    fn body(&mut self, ends: &[&'static str]) -> Result<(Vec<Statement>, &'static str)> {
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

    /// The body of a tag up to its end, and the end.
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
                // Its parameters come first, if it has any.
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

    /// What is assigned to: a name, the attribute of a namespace, or several names.
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
        // A call's body within a macro reads that macro's.
        if end == "endcall"
            && let Some(outer) = self.uses.last_mut()
        {
            outer.iter_mut().zip(uses).for_each(|(outer, used)| *outer |= used);
        }
        Ok(Macro { name, parameters, body, caller, varargs, kwargs })
    }

    /// An expression, or several with commas between them.
    fn tuple(&mut self, conditions: bool, ends: &[&str]) -> Result<Expression> {
        let one = |parser: &mut Self| {
            if conditions { parser.expression() } else { parser.or() }
        };
        let first = one(self)?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip(",") {
            let end = match self.peek() {
                None | Some(Token::PrintEnd | Token::BlockEnd) => true,
                Some(Token::Operator(operator)) => *operator == ")",
                Some(Token::Name(name)) => ends.contains(&&**name),
                _ => false,
            };
            if end {
                break;
            }
            items.push(one(self)?);
        }
        Ok(Expression::Tuple(items))
    }

    fn expression(&mut self) -> Result<Expression> {
        self.deeper(|parser| {
            let value = parser.or()?;
            if !parser.skip_name("if") {
                return Ok(value);
            }
            let condition = parser.or()?;
            let otherwise =
                if parser.skip_name("else") { Some(parser.expression()?) } else { None };
            Ok(Expression::If(Box::new((condition, value, otherwise))))
        })
    }

    fn or(&mut self) -> Result<Expression> {
        self.chain("or", Self::and, Expression::Or)
    }

    fn and(&mut self) -> Result<Expression> {
        self.chain("and", Self::not, Expression::And)
    }

    fn chain(
        &mut self,
        name: &str,
        read: fn(&mut Self) -> Result<Expression>,
        join: fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression> {
        let first = read(self)?;
        if !self.is_name(name) {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_name(name) {
            items.push(read(self)?);
        }
        Ok(join(items))
    }

    fn not(&mut self) -> Result<Expression> {
        if self.skip_name("not") {
            let inner = self.deeper(Self::not)?;
            return Ok(Expression::Not(Box::new(inner)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expression> {
        let first = self.sum()?;
        let mut rest = vec![];
        loop {
            let comparison = match self.peek() {
                Some(Token::Operator("==")) => Comparison::Equal,
                Some(Token::Operator("!=")) => Comparison::NotEqual,
                Some(Token::Operator("<")) => Comparison::Less,
                Some(Token::Operator("<=")) => Comparison::LessOrEqual,
                Some(Token::Operator(">")) => Comparison::Greater,
                Some(Token::Operator(">=")) => Comparison::GreaterOrEqual,
                Some(Token::Name(name)) if &**name == "in" => Comparison::In,
                Some(Token::Name(name)) if &**name == "not" => {
                    let next = self.tokens.get(self.at + 1);
                    if !matches!(next, Some((Token::Name(name), _)) if &**name == "in") {
                        break;
                    }
                    self.at += 1;
                    Comparison::NotIn
                }
                _ => break,
            };
            self.at += 1;
            rest.push((comparison, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expression::Compare(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expression> {
        self.binary(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expression> {
        let first = self.product()?;
        if !self.is("~") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip("~") {
            items.push(self.product()?);
        }
        Ok(Expression::Concat(items))
    }

    fn product(&mut self) -> Result<Expression> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Modulo),
        ];
        self.binary(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Expression> {
        self.binary(&[("**", Operator::Power)], |parser| parser.unary(true))
    }

    /// Operators of the same rank, from left to right.
    fn binary(
        &mut self,
        operators: &[(&str, Operator)],
        read: fn(&mut Self) -> Result<Expression>,
    ) -> Result<Expression> {
        let mut left = read(self)?;
        let mut length = 0;
        while let Some((_, operator)) = operators.iter().find(|(mark, _)| self.is(mark)) {
            self.at += 1;
            length += 1;
            // The left side is nested.
            if length > 2 * DEPTH {
                fail!("more than {} operators in a row", 2 * DEPTH);
            }
            let right = read(self)?;
            left = Expression::Binary(*operator, Box::new([left, right]));
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> Result<Expression> {
        let mut value = if self.skip("-") {
            Expression::Negative(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.skip("+") {
            Expression::Positive(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let mut length = 0;
        loop {
            value = match self.peek() {
                Some(Token::Operator("." | "[")) => self.subscript(value)?,
                Some(Token::Operator("(")) => self.call(value)?,
                Some(Token::Operator("|")) if filters => {
                    self.at += 1;
                    let call = self.named_call()?;
                    Expression::Filter(Box::new(value), Box::new(call))
                }
                Some(Token::Name(name)) if filters && &**name == "is" => self.test(value)?,
                _ => return Ok(value),
            };
            length += 1;
            if length > DEPTH {
                fail!("more than {DEPTH} steps in a row");
            }
        }
    }

    fn primary(&mut self) -> Result<Expression> {
        let token = self.next();
        Ok(match token {
            Some(Token::Name(name)) => match &*name {
                "true" | "True" => Expression::Constant(Value::Bool(true)),
                "false" | "False" => Expression::Constant(Value::Bool(false)),
                "none" | "None" => Expression::Constant(Value::None),
                _ => {
                    if let Some(special) = SPECIAL.iter().position(|special| **special == *name)
                        && let Some(uses) = self.uses.last_mut()
                    {
                        uses[special] = true;
                    }
                    Expression::Name(name)
                }
            },
            Some(Token::String(mut text)) => {
                while let Some(Token::String(more)) = self.peek() {
                    text += more;
                    self.at += 1;
                }
                Expression::Constant(Value::from(text))
            }
            Some(Token::Int(number)) => Expression::Constant(Value::Int(number)),
            Some(Token::Float(number)) => Expression::Constant(Value::Float(number)),
            Some(Token::Operator("(")) => {
                if self.skip(")") {
                    return Ok(Expression::Tuple(vec![]));
                }
                let inner = self.deeper(|parser| parser.tuple(true, &[]))?;
                self.expect(")")?;
                inner
            }
            Some(Token::Operator("[")) => Expression::List(self.items("]")?),
            Some(Token::Operator("{")) => {
                let mut entries = vec![];
                while !self.skip("}") {
                    if !entries.is_empty() {
                        self.expect(",")?;
                        if self.skip("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect(":")?;
                    entries.push((key, self.expression()?));
                }
                Expression::Dict(entries)
            }
            _ => {
                self.at -= 1;
                return self.unexpected("an expression");
            }
        })
    }

    fn items(&mut self, end: &str) -> Result<Vec<Expression>> {
        let mut items = vec![];
        while !self.skip(end) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.skip(end) {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        Ok(items)
    }

    fn subscript(&mut self, of: Expression) -> Result<Expression> {
        if self.skip(".") {
            if let Some(Token::Int(index)) = self.peek() {
                let index = Expression::Constant(Value::Int(*index));
                self.at += 1;
                return Ok(Expression::Item(Box::new(of), Box::new(index)));
            }
            return Ok(Expression::Attribute(Box::new(of), self.name("a name or a number")?));
        }
        self.expect("[")?;
        let mut parts: [Option<Expression>; 3] = [None, None, None];
        let mut colons = 0;
        loop {
            if self.skip("]") {
                break;
            }
            if self.skip(":") {
                colons += 1;
                if colons > 2 {
                    return self.unexpected("`]`");
                }
                continue;
            }
            if parts[colons].is_some() {
                return self.unexpected("`]`");
            }
            parts[colons] = Some(self.deeper(|parser| parser.tuple(true, &[]))?);
        }
        if colons > 0 {
            return Ok(Expression::Slice(Box::new(of), Box::new(parts)));
        }
        match parts {
            [Some(index), ..] => Ok(Expression::Item(Box::new(of), Box::new(index))),
            _ => fail!("syntax error: expected an index"),
        }
    }

    fn call(&mut self, of: Expression) -> Result<Expression> {
        let arguments = self.arguments()?;
        Ok(Expression::Call(Box::new(of), Box::new(arguments)))
    }

    fn arguments(&mut self) -> Result<Arguments> {
        self.expect("(")?;
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.skip(")") {
            if !first {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            first = false;
            if self.skip("**") {
                arguments.map = Some(self.expression()?);
            } else if self.skip("*") {
                arguments.list = Some(self.expression()?);
            } else if let (Some(Token::Name(name)), Some((Token::Operator("="), _))) =
                (self.peek().cloned(), self.tokens.get(self.at + 1))
            {
                self.at += 2;
                arguments.named.push((name, self.expression()?));
            } else if arguments.named.is_empty() && arguments.map.is_none() {
                arguments.positional.push(self.expression()?);
            } else {
                fail!("syntax error: an argument without a name follows one with a name");
            }
        }
        Ok(arguments)
    }

    /// A filter or a test: a name, perhaps with dots, and arguments.
    fn dotted(&mut self) -> Result<Name> {
        let mut name = self.name("the name of a filter or a test")?;
        while self.skip(".") {
            name = format!("{name}.{}", self.name("a name")?).into();
        }
        Ok(name)
    }

    fn named_call(&mut self) -> Result<Call> {
        let name = self.dotted()?;
        let arguments = if self.is("(") { self.arguments()? } else { Arguments::default() };
        Ok(Call { name, arguments })
    }

    /// Filters of a block: the first without `|` in a filter block.
    fn filters(&mut self, first: bool) -> Result<Vec<Call>> {
        let mut filters = vec![];
        if first {
            filters.push(self.named_call()?);
        }
        while self.skip("|") {
            filters.push(self.named_call()?);
        }
        Ok(filters)
    }

    fn test(&mut self, of: Expression) -> Result<Expression> {
        self.at += 1;
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let mut arguments = Arguments::default();
        if self.is("(") {
            arguments = self.arguments()?;
        } else {
            let takes = match self.peek() {
                Some(Token::Name(name)) => !["else", "or", "and"].contains(&&**name),
                Some(Token::String(_) | Token::Int(_) | Token::Float(_)) => true,
                Some(Token::Operator(operator)) => ["[", "{"].contains(operator),
                _ => false,
            };
            if takes {
                if self.is_name("is") {
                    fail!("syntax error: tests cannot be chained by `is`");
                }
                let mut argument = self.primary()?;
                while let Some(Token::Operator("." | "[" | "(")) = self.peek() {
                    argument =
                        if self.is("(") { self.call(argument)? } else { self.subscript(argument)? };
                }
                arguments.positional.push(argument);
            }
        }
        let test = Expression::Test(Box::new(of), Box::new(Call { name, arguments }));
        Ok(if negated { Expression::Not(Box::new(test)) } else { test })
    }
}
