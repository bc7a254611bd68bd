//! Bars on a terminal, and lines elsewhere.

use super::work::{Unit, Work};
use crate::terminal::is_drawn_on;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    collections::BTreeMap,
    io::{Write, stderr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time that work takes before it is shown.
const QUICK: Duration = Duration::from_secs(2);

/// Time between two lines where no bar can be drawn.
const LINES: Duration = Duration::from_secs(10);

/// What is shown of the work that is not over.
#[derive(Default)]
pub(super) struct Bars(Mutex<BTreeMap<u64, Shown>>);

struct Shown {
    began: Instant,
    bar: Option<ProgressBar>,
    lines: u32,
}

impl Bars {
    pub fn update(&self, work: &Work) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if work.is_over() {
            if let Some(Shown { bar: Some(bar), .. }) = shown.remove(&work.id()) {
                bar.finish_and_clear();
            }
            return;
        }
        let other = shown.iter().any(|(id, shown)| *id != work.id() && shown.bar.is_some());
        let new = Shown { began: Instant::now(), bar: None, lines: 0 };
        let own = shown.entry(work.id()).or_insert(new);
        let time = own.began.elapsed();
        if let Some(bar) = &own.bar {
            return bar.set_position(work.done());
        }
        match due(time, is_drawn_on(&stderr()), other, own.lines) {
            Due::Nothing => {}
            Due::Bar => own.bar = Some(bar(work, time)),
            Due::Line => {
                own.lines = (time.as_secs() / LINES.as_secs()) as u32;
                // A closed standard error is no reason to stop.
                _ = writeln!(stderr(), "{}", line(work));
            }
        }
    }
}

/// What is to be shown of work.
#[derive(Debug, PartialEq)]
enum Due {
    Nothing,
    Bar,
    Line,
}

/// What is due after some time: on a terminal a bar, unless there is one of other work; elsewhere one line
/// more than there are for each ten seconds.
fn due(time: Duration, terminal: bool, other: bool, lines: u32) -> Due {
    match terminal {
        true if time >= QUICK && !other => Due::Bar,
        false if time >= LINES * (lines + 1) => Due::Line,
        _ => Due::Nothing,
    }
}

fn bar(work: &Work, time: Duration) -> ProgressBar {
    let style = match (work.unit(), work.total()) {
        (Unit::Bytes, Some(_)) => {
            "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"
        }
        (Unit::Bytes, None) => "{msg} {bytes} {binary_bytes_per_sec}",
        (Unit::Items, Some(_)) => "{msg} {bar:30} {pos}/{len} {eta}",
        (Unit::Items, None) => "{msg} {pos}",
    };
    let style = ProgressStyle::with_template(style);
    let bar = ProgressBar::with_draw_target(work.total(), ProgressDrawTarget::stderr())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(crate::escaped(work.what()).to_string())
        .with_elapsed(time);
    bar.set_position(work.done());
    bar
}

fn line(work: &Work) -> String {
    let amount = |amount: u64| match work.unit() {
        Unit::Bytes => HumanBytes(amount).to_string(),
        Unit::Items => amount.to_string(),
    };
    let of = work.total().map(|total| format!(" of {}", amount(total)));
    let what = crate::escaped(work.what());
    format!("{what}: {}{}", amount(work.done()), of.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_work_is_not_shown() {
        let due = |millis, terminal, other, lines| {
            due(Duration::from_millis(millis), terminal, other, lines)
        };
        assert_eq!(due(1_999, true, false, 0), Due::Nothing);
        assert_eq!(due(2_000, true, false, 0), Due::Bar);
        assert_eq!(due(2_000, true, true, 0), Due::Nothing, "one at a time");
        assert_eq!(due(9_999, false, false, 0), Due::Nothing);
        assert_eq!(due(10_000, false, false, 0), Due::Line);
        assert_eq!(due(19_999, false, false, 1), Due::Nothing);
        assert_eq!(due(20_000, false, true, 1), Due::Line);
    }

    #[test]
    fn a_line_says_how_far_it_is() {
        let work = Work::bytes("loading\u{7}", 3 << 20);
        work.advance(3 << 19);
        assert_eq!(line(&work), "loading\\u{7}: 1.50 MiB of 3.00 MiB");
        let work = Work::unknown("encoding");
        work.advance(5);
        assert_eq!(line(&work), "encoding: 5");
    }
}
