//! Whether escapes may be written to a terminal.

use std::{env, io::IsTerminal};

/// Returns `true` if text on a stream may be coloured.
///
/// `NO_COLOR` (of any value) and `CLICOLOR=0` say no, `CLICOLOR_FORCE` (not `0`) says yes; otherwise
/// a stream may be coloured if it is a terminal, and `TERM` is not `dumb`. The first of them decides
/// (<https://no-color.org>, <https://bixense.com/clicolors>).
pub fn is_coloured(stream: &impl IsTerminal) -> bool {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if let Some(force) = set("CLICOLOR_FORCE") {
        return force != "0" || is_drawn_on(stream);
    }
    set("CLICOLOR").is_none_or(|value| value != "0") && is_drawn_on(stream)
}

/// Returns `true` if a line on a stream may be drawn again, as that of a progress bar: if it is a
/// terminal, and `TERM` is not `dumb`.
pub fn is_drawn_on(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
