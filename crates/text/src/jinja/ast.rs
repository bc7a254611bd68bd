//! Syntax tree of a template.

use super::value::Value;
use std::sync::Arc;

pub type Name = Arc<str>;

#[derive(Debug)]
pub struct Statement {
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    Text(Name),
    Print(Expression),
    /// Conditions with their bodies, and the `else` body.
    If(Vec<(Expression, Vec<Statement>)>, Vec<Statement>),
    For(For),
    Set(Target, Expression),
    SetBlock(Target, Vec<Call>, Vec<Statement>),
    With(Vec<(Target, Expression)>, Vec<Statement>),
    Filter(Vec<Call>, Vec<Statement>),
    Macro(Macro),
    /// A macro's call, and the body that the macro may call back.
    CallBlock(Expression, Macro),
    Generation(Vec<Statement>),
    /// A body in a scope of its own.
    Scope(Vec<Statement>),
    Break,
    Continue,
}

#[derive(Debug)]
pub struct For {
    pub target: Target,
    pub over: Expression,
    pub condition: Option<Expression>,
    pub recursive: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
}

#[derive(Debug)]
pub struct Macro {
    pub name: Name,
    /// Parameters; the last ones may have defaults.
    pub parameters: Vec<(Name, Option<Expression>)>,
    pub body: Vec<Statement>,
    /// `true` if the body reads `caller`; likewise for `varargs` and `kwargs`.
    pub caller: bool,
    pub varargs: bool,
    pub kwargs: bool,
}

#[derive(Debug)]
pub enum Target {
    Name(Name),
    Attribute(Name, Name),
    Tuple(Vec<Target>),
}

/// A name with arguments: a filter or a test.
#[derive(Debug)]
pub struct Call {
    pub name: Name,
    pub arguments: Arguments,
}

#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expression>,
    pub named: Vec<(Name, Expression)>,
    pub list: Option<Expression>,
    pub map: Option<Expression>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

#[derive(Debug)]
pub enum Expression {
    Constant(Value),
    Name(Name),
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Attribute(Box<Expression>, Name),
    Item(Box<Expression>, Box<Expression>),
    Slice(Box<Expression>, Box<[Option<Expression>; 3]>),
    Call(Box<Expression>, Box<Arguments>),
    /// A filter of an operand; in a filter block the operand is `None`.
    Filter(Box<Expression>, Box<Call>),
    Test(Box<Expression>, Box<Call>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Positive(Box<Expression>),
    Binary(Operator, Box<[Expression; 2]>),
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Concat(Vec<Expression>),
    /// Condition, `then` and `else`.
    If(Box<(Expression, Expression, Option<Expression>)>),
}

/// Returns `true` if a statement of this kind exists at any depth.
pub fn any(body: &[Statement], is: &impl Fn(&Kind) -> bool) -> bool {
    body.iter().any(|statement| {
        is(&statement.kind)
            || match &statement.kind {
                Kind::If(branches, otherwise) => {
                    branches.iter().any(|(_, body)| any(body, is)) || any(otherwise, is)
                }
                Kind::For(inner) => any(&inner.body, is) || any(&inner.otherwise, is),
                Kind::Macro(inner) | Kind::CallBlock(_, inner) => any(&inner.body, is),
                Kind::SetBlock(_, _, body)
                | Kind::With(_, body)
                | Kind::Filter(_, body)
                | Kind::Generation(body)
                | Kind::Scope(body) => any(body, is),
                _ => false,
            }
    })
}
