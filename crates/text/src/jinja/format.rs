//! Formatting: `'%s' % value` and `'{}'.format(value)`.

use super::{
    arguments::Arguments,
    error::{Result, fail},
    machine::Machine,
    value::Value,
    write::{float, repr, string},
};
use std::{iter::Peekable, str::Chars};

/// Format specification of a value.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    /// `+` or a space before numbers that are not negative.
    sign: Option<char>,
    alternate: bool,
    comma: Option<char>,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

fn number(chars: &mut Peekable<Chars>) -> Option<usize> {
    let mut value: Option<usize> = None;
    while let Some(digit) = chars.peek().and_then(|char| char.to_digit(10)) {
        value = Some(value.unwrap_or(0).saturating_mul(10).saturating_add(digit as usize));
        chars.next();
    }
    value
}

/// `template % values`.
pub fn percent(machine: &mut Machine, template: &str, values: &Value) -> Result<String> {
    let mut out = String::new();
    let single = std::slice::from_ref(values);
    let items: &[Value] = if let Value::Tuple(items) = values { &items.items } else { single };
    let mut items_left = items.iter();
    let mut by_name = false;
    let mut chars = template.chars().peekable();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            loop {
                match chars.next() {
                    Some(')') => break,
                    Some(char) => name.push(char),
                    None => fail!("incomplete format key"),
                }
            }
            let Value::Dict(dict) = values else { fail!("format requires a mapping") };
            let Some(value) = dict.get(&name) else { fail!("format: there is no '{name}'") };
            named = Some(value);
            by_name = true;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|char| "#0- +".contains(*char)) {
            match flag {
                '#' => spec.alternate = true,
                '0' => spec.fill = Some('0'),
                '-' => spec.align = Some('<'),
                ' ' if spec.sign.is_none() => spec.sign = Some(' '),
                '+' => spec.sign = Some('+'),
                _ => (),
            }
        }
        let mut next = || match named.or_else(|| items_left.next()) {
            Some(value) => Ok(value),
            None => fail!("not enough arguments for format string"),
        };
        if chars.next_if_eq(&'*').is_some() {
            spec.width = super::arguments::count("format", next()?)?;
        } else {
            spec.width = number(&mut chars).unwrap_or(0);
        }
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars).unwrap_or(0));
        }
        while chars.next_if(|char| "hlL".contains(*char)).is_some() {}
        let Some(kind) = chars.next() else { fail!("incomplete format") };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = next()?;
        if spec.align == Some('<') && spec.fill == Some('0') {
            spec.fill = None;
        }
        spec.align.get_or_insert(if spec.fill == Some('0') { '=' } else { '>' });
        let text = match kind {
            's' | 'r' | 'a' => {
                // Zero padding is for numbers only.
                spec.fill = None;
                spec.align = spec.align.map(|align| if align == '=' { '>' } else { align });
                machine.charge(value.weight())?;
                if kind == 's' { string(value)? } else { repr(value)? }
            }
            'c' => {
                match value.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?)) {
                    Some(char) => char.to_string(),
                    None => super::arguments::text("%c", value)?.to_string(),
                }
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let whole = match value {
                    Value::Float(value) if "diu".contains(kind) && value.is_finite() => {
                        Value::Int(value.trunc() as i128)
                    }
                    _ => Value::Int(super::arguments::int(&format!("%{kind}"), value)?),
                };
                spec.kind = Some(if "iu".contains(kind) { 'd' } else { kind });
                out += &spec.number(machine, &whole, 1)?;
                continue;
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let Some(value) = value.as_float() else {
                    fail!("%{kind}: must be real number, not {}", value.kind())
                };
                spec.kind = Some(kind);
                out += &spec.number(machine, &Value::Float(value), 0)?;
                continue;
            }
            _ => fail!("unsupported format character '{kind}'"),
        };
        let text = match spec.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text,
        };
        out += &spec.pad(machine, "", &text)?;
        machine.check(out.len())?;
    }
    // A container may be given for its names.
    let named = matches!(values, Value::Dict(_) | Value::List(_) | Value::Undefined(_));
    if !by_name && !named && items_left.next().is_some() {
        fail!("not all arguments converted during string formatting");
    }
    Ok(out)
}

/// `template.format(..)`.
pub fn braces(machine: &mut Machine, template: &str, arguments: Arguments) -> Result<String> {
    let mut automatic = 0;
    braces_at(machine, template, &arguments, &mut automatic, 2)
}

fn braces_at(
    machine: &mut Machine,
    template: &str,
    arguments: &Arguments,
    automatic: &mut usize,
    depth: usize,
) -> Result<String> {
    if depth == 0 {
        fail!("Max string recursion exceeded");
    }
    let mut out = String::new();
    let mut chars = template.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '{' | '}' if chars.next_if_eq(&char).is_some() => out.push(char),
            '}' => fail!("Single '}}' encountered in format string"),
            '{' => {
                let (mut field, mut open) = (String::new(), 1);
                loop {
                    let Some(char) = chars.next() else {
                        fail!("expected '}}' before end of string")
                    };
                    open = match char {
                        '{' => open + 1,
                        '}' => open - 1,
                        _ => open,
                    };
                    if open == 0 {
                        break;
                    }
                    field.push(char);
                }
                out += &field_text(machine, &field, arguments, automatic, depth)?;
            }
            _ => out.push(char),
        }
        machine.check(out.len())?;
    }
    Ok(out)
}

fn field_text(
    machine: &mut Machine,
    field: &str,
    arguments: &Arguments,
    automatic: &mut usize,
    depth: usize,
) -> Result<String> {
    let (field, spec) = field.split_once(':').unwrap_or((field, ""));
    let (field, conversion) = field.split_once('!').unwrap_or((field, ""));
    let end = field.find(['.', '[']).unwrap_or(field.len());
    let (first, mut rest) = field.split_at(end);
    let position = if first.is_empty() {
        *automatic += 1;
        Some(*automatic - 1)
    } else {
        first.parse().ok()
    };
    let found = match position {
        Some(at) => arguments.positional.get(at),
        None => arguments.named.iter().find(|(name, _)| **name == *first).map(|(_, value)| value),
    };
    let Some(found) = found else { fail!("format: there is no argument for '{{{field}}}'") };
    let mut value = found.clone();
    while !rest.is_empty() {
        if let Some(attribute) = rest.strip_prefix('.') {
            let end = attribute.find(['.', '[']).unwrap_or(attribute.len());
            value = machine.attribute(&value, &attribute[..end].into())?;
            rest = &attribute[end..];
        } else {
            let Some((index, after)) = rest[1..].split_once(']') else {
                fail!("Missing ']' in format string")
            };
            let key = index.parse().map_or_else(|_| Value::from(index), Value::Int);
            value = machine.item(&value, &key)?;
            rest = after;
        }
    }
    let spec = braces_at(machine, spec, arguments, automatic, depth - 1)?;
    machine.charge(value.weight())?;
    let value = match conversion {
        "" => value,
        "s" => string(&value)?.into(),
        "r" | "a" => repr(&value)?.into(),
        _ => fail!("Unknown conversion specifier '{conversion}'"),
    };
    formatted(machine, &value, &spec)
}

/// Python's `format(value, spec)`.
fn formatted(machine: &mut Machine, value: &Value, text: &str) -> Result<String> {
    if text.is_empty() {
        return string(value);
    }
    let spec = Spec::parse(text)?;
    match value {
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => spec.number(machine, value, 0),
        Value::Str(own) | Value::Markup(own) => {
            if !matches!(spec.kind, None | Some('s')) || spec.align == Some('=') {
                fail!("Invalid format specifier '{text}' for object of type 'str'");
            }
            let own = match spec.precision {
                Some(precision) => own.chars().take(precision).collect(),
                None => own.to_string(),
            };
            Spec { align: spec.align.or(Some('<')), ..spec }.pad(machine, "", &own)
        }
        other => fail!("unsupported format string passed to {}.__format__", other.kind()),
    }
}

impl Spec {
    /// Reads `[[fill]align][sign][#][0][width][,][.precision][kind]`.
    fn parse(text: &str) -> Result<Self> {
        let mut spec = Self::default();
        let mut chars = text.chars().peekable();
        let aligns = |char: &char| "<>=^".contains(*char);
        let mut ahead = text.chars();
        let (first, second) = (ahead.next(), ahead.next());
        if second.as_ref().is_some_and(aligns) {
            spec.fill = first;
            chars.next();
        }
        spec.align = chars.next_if(aligns);
        spec.sign = chars.next_if(|char| "+- ".contains(*char)).filter(|sign| *sign != '-');
        spec.alternate = chars.next_if_eq(&'#').is_some();
        if chars.next_if_eq(&'0').is_some() && spec.align.is_none() {
            (spec.fill, spec.align) = (Some('0'), Some('='));
        }
        spec.width = number(&mut chars).unwrap_or(0);
        spec.comma = chars.next_if(|char| ",_".contains(*char));
        if chars.next_if_eq(&'.').is_some() {
            let Some(precision) = number(&mut chars) else {
                fail!("Format specifier missing precision")
            };
            spec.precision = Some(precision);
        }
        spec.kind = chars.next();
        if chars.next().is_some() {
            fail!("Invalid format specifier '{text}'");
        }
        Ok(spec)
    }

    fn pad(&self, machine: &mut Machine, sign: &str, text: &str) -> Result<String> {
        let length = sign.chars().count() + text.chars().count();
        let missing = self.width.saturating_sub(length);
        let fill = self.fill.unwrap_or(' ').to_string();
        let (left, right) = match self.align.unwrap_or('>') {
            '<' => (0, missing),
            '^' => (missing / 2, missing - missing / 2),
            '=' => return Ok(format!("{sign}{}", machine.pad(text, &fill, missing, 0)?)),
            _ => (missing, 0),
        };
        machine.pad(&format!("{sign}{text}"), &fill, left, right)
    }

    /// Formats a number with at least `digits` digits.
    fn number(&self, machine: &mut Machine, value: &Value, digits: usize) -> Result<String> {
        let precision = self.precision;
        if precision.is_some_and(|precision| precision > 1000) {
            fail!("format: a precision of more than 1000");
        }
        let negative = value.as_float().is_some_and(|value| value.is_sign_negative())
            && !matches!(value, Value::Int(0));
        let magnitude = value.as_float().unwrap_or_default().abs();
        let whole = value.as_int().map(i128::unsigned_abs);
        let mut body = match (self.kind, whole) {
            (None | Some('d' | 'n'), Some(value)) => value.to_string(),
            (Some('x'), Some(value)) => format!("{value:x}"),
            (Some('X'), Some(value)) => format!("{value:X}"),
            (Some('o'), Some(value)) => format!("{value:o}"),
            (Some('b'), Some(value)) => format!("{value:b}"),
            (Some('c'), Some(value)) => {
                let char = u32::try_from(value).ok().and_then(char::from_u32);
                char.map(String::from).unwrap_or_default()
            }
            (Some('f' | 'F'), _) => format!("{magnitude:.*}", precision.unwrap_or(6)),
            (Some('%'), _) => format!("{:.*}%", precision.unwrap_or(6), magnitude * 100.0),
            (Some('e' | 'E'), _) => exponent(magnitude, precision.unwrap_or(6)),
            (Some('g' | 'G' | 'n'), _) => {
                general(magnitude, precision.unwrap_or(6), self.alternate)
            }
            (None, None) => match precision {
                Some(precision) => general(magnitude, precision, false),
                None => float(magnitude),
            },
            (Some(kind), _) => fail!("Unknown format code '{kind}' for '{}'", value.kind()),
        };
        if !magnitude.is_finite() {
            body = float(magnitude);
        }
        if matches!(self.kind, Some('E' | 'F' | 'G')) {
            body = body.to_uppercase();
        }
        if whole.is_some() && body.len() < precision.unwrap_or(digits) {
            body = "0".repeat(precision.unwrap_or(digits) - body.len()) + &body;
        }
        if let Some(comma) = self.comma {
            let end = body.find(|char: char| !char.is_ascii_digit()).unwrap_or(body.len());
            let mut grouped = String::new();
            for (number, digit) in body[..end].chars().enumerate() {
                if number > 0 && (end - number).is_multiple_of(3) {
                    grouped.push(comma);
                }
                grouped.push(digit);
            }
            body = grouped + &body[end..];
        }
        let mut sign = match (negative, self.sign) {
            (true, _) => "-".to_owned(),
            (false, sign) => sign.map(String::from).unwrap_or_default(),
        };
        if self.alternate
            && whole.is_some()
            && let Some(kind @ ('x' | 'X' | 'o' | 'b')) = self.kind
        {
            sign.extend(['0', kind]);
        }
        self.pad(machine, &sign, &body)
    }
}

fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn general(value: f64, precision: usize, zeros: bool) -> String {
    let precision = precision.max(1);
    let scientific = exponent(value, precision - 1);
    let power: i32 = scientific.rsplit('e').next().and_then(|e| e.parse().ok()).unwrap_or(0);
    let shorten = |text: &str| match text.contains('.') && !zeros {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..precision as i32).contains(&power) {
        let decimals = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
        return shorten(&format!("{value:.decimals$}"));
    }
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
    format!("{}e{power}", shorten(digits))
}
