//! The page: HTML with its style and its script inside.

use super::{
    content::{Content, Curves, State, excerpt},
    figure::{Curve, Figure},
    text::{bytes, count, date, duration, escape, now, number},
};
use crate::watch::{EvalMetrics, StopReason, plot::smoothed};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Evaluations in the table.
const EVALUATIONS: usize = 100;

impl Content {
    /// Returns the whole page. It loads nothing: its policy forbids it.
    pub fn html(&self) -> String {
        let (title, now) = (escape(&self.title), now());
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
             <title>{title} · burn-lora</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        );
        _ = writeln!(out, "<header>\n<h1>{title}</h1>");
        self.write_state(now, &mut out);
        self.write_figures_of_now(&mut out);
        out += "</header>\n<main>\n";
        self.write_curves(&mut out);
        self.write_answers(&mut out);
        self.write_examples(&mut out);
        self.write_facts(&mut out);
        self.write_settings(&mut out);
        _ = writeln!(
            out,
            "</main>\n<footer>Written by burn-lora {} on {}</footer>\n<script>\n{SCRIPT}</script>\n\
             </body>\n</html>",
            env!("CARGO_PKG_VERSION"),
            date(now)
        );
        out
    }

    /// Steps done.
    fn step(&self) -> usize {
        let last = self.curves.last.as_ref().map(|metrics| metrics.step);
        match &self.state {
            State::Ended(_, finished) => finished.steps,
            state => last.or(state.run().and_then(|run| run.resumed_from)).unwrap_or(0),
        }
    }

    fn write_state(&self, now: u64, out: &mut String) {
        let Some(run) = self.state.run() else {
            *out += "<p class=\"state\">Not started</p>\n";
            return;
        };
        let (step, seconds) = (self.step(), self.state.seconds());
        let of = format!("step {} of {}", count(step), count(run.steps));
        let (class, mut text) = match &self.state {
            State::Ended(_, finished) => match finished.reason {
                StopReason::Interrupted => ("interrupted", format!("Interrupted at {of}")),
                StopReason::EarlyStopping => ("finished", format!("Stopped early at {of}")),
                _ => ("finished", format!("Finished, {} steps", count(step))),
            },
            State::Failed(..) => ("failed", format!("Failed after {of}")),
            _ => ("running", format!("Running, {of}")),
        };
        if seconds >= 0.5 {
            _ = write!(text, " · {}", duration(seconds));
        }
        if let Some(from) = run.resumed_from {
            _ = write!(text, " since step {}", count(from));
        }
        let done = step.saturating_sub(run.resumed_from.unwrap_or(0));
        if let State::Running(..) = self.state {
            let left = seconds / done.max(1) as f64 * run.steps.saturating_sub(step) as f64;
            if done > 0 {
                _ = write!(text, " · about {} left", duration(left));
            }
            _ = writeln!(out, "<p class=\"state {class}\" data-written=\"{now}\">{text}</p>");
        } else {
            _ = writeln!(out, "<p class=\"state {class}\">{text}</p>");
        }
        if let State::Failed(_, _, error) = &self.state {
            _ = writeln!(out, "<p class=\"error\">{}</p>", excerpt(error));
        }
        if !matches!(self.state, State::Ended(_, ref end) if end.reason != StopReason::Interrupted)
        {
            let (value, max) = (step.min(run.steps), run.steps.max(1));
            _ = writeln!(
                out,
                "<progress class=\"{class}\" value=\"{value}\" max=\"{max}\">{of}</progress>"
            );
        }
    }

    /// The numbers that a reader looks for first.
    fn write_figures_of_now(&self, out: &mut String) {
        let mut shown: Vec<(&str, String, String)> = Vec::new();
        let training = smoothed(self.curves.training(Curves::LOSS));
        if let (Some(first), Some(last)) = (training.first(), training.last()) {
            let from = format!("from {:.4}", first.1);
            shown.push(("Training loss, smoothed", format!("{:.4}", last.1), from));
        }
        let valid = self.curves.validation(Curves::LOSS).iter().filter(|point| point.1.is_finite());
        if let (Some(last), Some(best)) =
            (valid.clone().next_back(), valid.min_by(|a, b| a.1.total_cmp(&b.1)))
        {
            let best = match best == last {
                true => "the best so far".to_owned(),
                false => format!("best {:.4}, step {}", best.1, count(best.0 as usize)),
            };
            shown.push(("Validation loss", format!("{:.4}", last.1), best));
        }
        if let Some(last) = &self.curves.last {
            let passes = format!("{} passes over the data", number(last.epoch));
            shown.push(("Tokens", count(last.num_tokens as usize), passes));
        }
        let speed = smoothed(self.curves.training(Curves::SPEED));
        if let Some((_, speed)) = speed.last() {
            let step = self.curves.last.as_ref().map_or(f64::NAN, |last| last.step_seconds);
            shown.push(("Tokens per second", number(*speed), format!("{} s a step", number(step))));
        }
        let memory = self.curves.training(Curves::MEMORY);
        if let Some(peak) = memory.iter().map(|point| point.1).max_by(f64::total_cmp) {
            let now = memory.last().map_or(peak, |point| point.1);
            shown.push(("Memory, largest", bytes(peak), format!("{} now", bytes(now))));
        }
        if shown.is_empty() {
            return;
        }
        *out += "<dl class=\"numbers\">\n";
        for (name, value, more) in shown {
            _ = writeln!(
                out,
                "<div><dt>{name}</dt><dd>{value}</dd><dd class=\"more\">{more}</dd></div>"
            );
        }
        *out += "</dl>\n";
    }

    fn write_curves(&self, out: &mut String) {
        let curves = &self.curves;
        let mut figures = String::new();
        let loss = curves.training(Curves::LOSS);
        let mut losses = with_smoothed("training", loss);
        let validation = curves.validation(Curves::LOSS);
        losses.push(Curve::new("validation", "validation", validation).dotted());
        Figure { title: "Loss", curves: losses, wide: true }.write(&mut figures);
        let memory = curves.training(Curves::MEMORY).iter();
        let gib: Vec<_> = memory.map(|(x, y)| (*x, y / (1u64 << 30) as f64)).collect();
        let [rate, norm, speed] = [Curves::LEARNING_RATE, Curves::GRAD_NORM, Curves::SPEED]
            .map(|name| curves.training(name));
        for (title, curves) in [
            ("Learning rate", vec![Curve::new("", "training", rate)]),
            ("Gradient norm", with_smoothed("raw", norm)),
            ("Tokens per second", with_smoothed("raw", speed)),
            ("Memory reserved, GiB", vec![Curve::new("", "training", &gib)]),
        ] {
            Figure { title, curves, wide: false }.write(&mut figures);
        }
        let names = curves.training.keys().chain(curves.validation.keys());
        let mut names: Vec<_> =
            names.filter(|name| !Curves::OWN.contains(&name.as_str())).collect();
        names.sort();
        names.dedup();
        for name in names {
            let title = title(name);
            let mut both = with_smoothed("training", curves.training(name));
            let validation = curves.validation(name);
            both.push(Curve::new("validation", "validation", validation).dotted());
            Figure { title: &title, curves: both, wide: false }.write(&mut figures);
        }
        if figures.is_empty() {
            return;
        }
        _ = writeln!(out, "<section class=\"figures\">\n<h2>Curves</h2>\n{figures}</section>");
        self.write_evaluations(out);
    }

    fn write_evaluations(&self, out: &mut String) {
        let all = &self.curves.evaluations;
        let Some(last) = all.last() else { return };
        let shown = &all[all.len().saturating_sub(EVALUATIONS)..];
        let of = match shown.len() == all.len() {
            true => count(all.len()),
            false => format!("the last {} of {}", shown.len(), count(all.len())),
        };
        _ = write!(out, "<details>\n<summary>Evaluations ({of})</summary>\n<div class=\"scroll\">");
        *out += "<table>\n<tr><th>Step</th><th>Epoch</th><th>Loss</th>";
        let names: Vec<_> = last.metrics.iter().map(|(name, _)| name).collect();
        for name in &names {
            _ = write!(out, "<th>{}</th>", escape(&title(name)));
        }
        *out += "</tr>\n";
        let cell = |value: Option<f64>| number(value.unwrap_or(f64::NAN));
        for EvalMetrics { step, epoch, loss, metrics, .. } in shown {
            _ = write!(out, "<tr><td>{}</td><td>{}</td>", count(*step), number(*epoch));
            _ = write!(out, "<td>{}</td>", cell(Some(*loss)));
            for name in &names {
                _ = write!(out, "<td>{}</td>", cell(metrics.get(name)));
            }
            *out += "</tr>\n";
        }
        *out += "</table></div>\n</details>\n";
    }

    fn write_answers(&self, out: &mut String) {
        if self.answers.is_empty() {
            return;
        }
        *out += "<section>\n<h2>Answers</h2>\n";
        let mut questions: Vec<&str> = Vec::new();
        for answer in &self.answers {
            if !questions.contains(&answer.question.as_str()) {
                questions.push(&answer.question);
            }
        }
        for question in questions {
            _ = writeln!(out, "<article>\n<p class=\"question text\">{}</p>", excerpt(question));
            *out += "<div class=\"answers\">\n";
            for answer in self.answers.iter().filter(|answer| answer.question == question) {
                let (when, text) = (escape(&answer.when), excerpt(&answer.answer));
                _ = writeln!(out, "<div><h3>{when}</h3><p class=\"text\">{text}</p></div>");
            }
            *out += "</div>\n</article>\n";
        }
        *out += "</section>\n";
    }

    fn write_examples(&self, out: &mut String) {
        if self.examples.is_empty() {
            return;
        }
        *out += "<section>\n<h2>Examples</h2>\n<p class=\"note\">The <mark>marked</mark> tokens \
                 are trained.</p>\n";
        for example in &self.examples {
            let (source, text) = (escape(&example.source), example.html());
            _ = writeln!(out, "<article>\n<h3>{source}</h3>\n<p class=\"text\">{text}</p>");
            *out += "</article>\n";
        }
        *out += "</section>\n";
    }

    fn write_facts(&self, out: &mut String) {
        if self.facts.is_empty() {
            return;
        }
        *out += "<section class=\"facts\">\n<h2>Model and data</h2>\n";
        for (title, rows) in &self.facts {
            _ = writeln!(out, "<div>\n<h3>{}</h3>\n<dl>", escape(title));
            for (name, value) in rows {
                _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), excerpt(value));
            }
            *out += "</dl>\n</div>\n";
        }
        *out += "</section>\n";
    }

    /// The run file, its headers and comments set apart.
    fn write_settings(&self, out: &mut String) {
        let Some(settings) = &self.settings else { return };
        *out += "<section>\n<h2>Settings</h2>\n<pre>";
        for line in settings.trim_end().lines() {
            let text = escape(line);
            *out += &match line.chars().next() {
                Some('[') => format!("<b>{text}</b>\n"),
                Some('#') => format!("<i>{text}</i>\n"),
                _ => format!("{text}\n"),
            };
        }
        *out += "</pre>\n</section>\n";
    }
}

/// A curve with noise, and without.
fn with_smoothed<'a>(name: &'a str, points: &[(f64, f64)]) -> Vec<Curve<'a>> {
    vec![Curve::new(name, "raw", points), Curve::new("smoothed", "training", &smoothed(points))]
}

/// Name of a metric as a title: `Mean token accuracy`.
fn title(name: &str) -> String {
    let name = name.replace('_', " ");
    let mut chars = name.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
