//! Parser of expressions.

use super::{
    super::{
        ast::{Arguments, Call, Comparison, Expression, Name, Operator},
        error::{Result, fail},
        lexer::Token,
        value::Value,
    },
    DEPTH, Parser, SPECIAL,
};

impl Parser {
    /// Parses an expression, or several separated by commas.
    pub(super) fn tuple(&mut self, conditions: bool, ends: &[&str]) -> Result<Expression> {
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

    pub(super) fn expression(&mut self) -> Result<Expression> {
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

    pub(super) fn or(&mut self) -> Result<Expression> {
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

    /// Parses operators of the same precedence, from left to right.
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
            // Each operator nests the left side.
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

    /// Parses the name of a filter or a test, which may have dots.
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

    /// Parses filters; in a filter block the first has no `|`.
    pub(super) fn filters(&mut self, first: bool) -> Result<Vec<Call>> {
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
