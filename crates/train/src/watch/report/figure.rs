//! Curves as SVG that takes its colours and its width from the page.

use super::text::{count, escape, number};
use crate::watch::chart::{is_finite, range, thinned};
use std::{fmt::Write, ops::Range};

/// Points of a curve at most.
const POINTS: usize = 1000;
/// Points of a curve up to which each is marked with a dot.
const DOTS: usize = 60;
/// Width and height of the drawing, which the page stretches.
const SIZE: f64 = 1000.0;

/// A set of axes and its curves.
pub(super) struct Figure<'a> {
    pub title: &'a str,
    pub curves: Vec<Curve<'a>>,
    pub wide: bool,
}

/// A curve; its class says which colour it has. Without a name it is alone.
pub(super) struct Curve<'a> {
    pub name: &'a str,
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
    pub dots: bool,
}

impl<'a> Curve<'a> {
    /// Keeps so many of the points that the page does not become large.
    pub fn new(name: &'a str, class: &'static str, points: &[(f64, f64)]) -> Self {
        Self { name, class, points: thinned(points, POINTS), dots: false }
    }

    /// Marks each point with a dot, if there are few.
    pub fn dotted(mut self) -> Self {
        self.dots = self.points.len() <= DOTS;
        self
    }

    fn finite(&self) -> impl DoubleEndedIterator<Item = (f64, f64)> {
        self.points.iter().copied().filter(is_finite)
    }
}

/// Maps values to the drawing.
struct Axes {
    x: Range<f64>,
    y: Range<f64>,
}

impl Axes {
    fn x(&self, value: f64) -> f64 {
        SIZE * (value - self.x.start) / (self.x.end - self.x.start)
    }

    /// From above.
    fn y(&self, value: f64) -> f64 {
        SIZE * (self.y.end - value) / (self.y.end - self.y.start)
    }
}

impl Figure<'_> {
    /// Writes the figure, unless it has no value that is finite.
    pub fn write(&self, out: &mut String) {
        let curves: Vec<_> =
            self.curves.iter().filter(|curve| curve.finite().next().is_some()).collect();
        if curves.is_empty() {
            return;
        }
        let points = || curves.iter().flat_map(|curve| curve.finite());
        let axes = Axes {
            x: range(points().map(|point| point.0), 0.0),
            y: range(points().map(|point| point.1), 0.06),
        };
        let class = if self.wide { " class=\"wide\"" } else { "" };
        let Axes { x, y } = &axes;
        _ = writeln!(
            out,
            "<figure{class} data-range=\"{} {} {} {}\">",
            x.start, x.end, y.start, y.end
        );
        self.write_caption(&curves, out);
        let title = escape(self.title);
        _ = writeln!(
            out,
            "<div class=\"plot\">\n<svg viewBox=\"0 0 {SIZE} {SIZE}\" preserveAspectRatio=\"none\" \
             role=\"img\" aria-label=\"{title} by step\">"
        );
        let (xs, ys) = (ticks(&axes.x, if self.wide { 8 } else { 5 }), ticks(&axes.y, 5));
        for y in &ys {
            let y = short(axes.y(*y));
            _ = writeln!(out, "<path class=\"grid\" d=\"M0 {y}H{SIZE}\"/>");
        }
        for curve in &curves {
            curve.write(&axes, out);
        }
        *out += "</svg>\n";
        for y in ys {
            let top = short(axes.y(y) / SIZE * 100.0);
            _ = writeln!(out, "<span class=\"y\" style=\"top:{top}%\">{}</span>", number(y));
        }
        for x in xs.into_iter().filter(|x| x.fract() == 0.0) {
            let left = short(axes.x(x) / SIZE * 100.0);
            _ = writeln!(out, "<span class=\"x\" style=\"left:{left}%\">{}</span>", number(x));
        }
        *out += "<i class=\"cursor\"></i>\n</div>\n</figure>\n";
    }

    /// Title, and names and last values of the curves.
    fn write_caption(&self, curves: &[&Curve], out: &mut String) {
        _ = write!(out, "<figcaption><h3>{}</h3><span class=\"key\">", escape(self.title));
        for curve in curves {
            let Curve { name, class, .. } = curve;
            let (step, value) = curve.finite().next_back().unwrap_or((0.0, f64::NAN));
            let name = match name.is_empty() {
                true => String::new(),
                false => format!("<i></i>{} ", escape(name)),
            };
            _ = write!(
                out,
                "<span class=\"{class}\" title=\"at step {}\">{name}<output>{}</output></span>",
                count(step as usize),
                number(value)
            );
        }
        *out += "</span></figcaption>\n";
    }
}

impl Curve<'_> {
    fn write(&self, axes: &Axes, out: &mut String) {
        let mut line = String::new();
        let mut dots = String::new();
        for piece in self.points.split(|point| !is_finite(point)) {
            for (i, point) in piece.iter().enumerate() {
                let (x, y) = (short(axes.x(point.0)), short(axes.y(point.1)));
                _ = write!(line, "{}{x} {y}", if i == 0 { 'M' } else { 'L' });
                if self.dots {
                    _ = write!(dots, "M{x} {y}L{x} {y}");
                }
            }
            // A line of one point would be invisible.
            if let [(x, y)] = piece {
                let (x, y) = (short(axes.x(*x)), short(axes.y(*y)));
                _ = write!(line, "L{x} {y}");
                _ = write!(dots, "M{x} {y}L{x} {y}");
            }
        }
        let class = self.class;
        _ = writeln!(out, "<path class=\"curve {class}\" d=\"{line}\"/>");
        if !dots.is_empty() {
            _ = writeln!(out, "<path class=\"dots {class}\" d=\"{dots}\"/>");
        }
    }
}

/// Round numbers in a range, `most` at most.
fn ticks(range: &Range<f64>, most: usize) -> Vec<f64> {
    let least = (range.end - range.start) / most as f64;
    let unit = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * unit);
    let step = step.into_iter().find(|step| *step >= least).unwrap_or(least);
    let (first, last) = ((range.start / step).ceil() as i64, (range.end / step).floor() as i64);
    // Multiplication by a fraction such as 0.1 would leave digits at the end.
    let value = |i: i64| if step < 1.0 { i as f64 / (1.0 / step).round() } else { i as f64 * step };
    (first..=last).map(value).collect()
}

/// Formats a coordinate with two digits behind the point at most.
fn short(value: f64) -> f64 {
    // No negative zero.
    (value * 100.0).round() / 100.0 + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_ticks() {
        assert_eq!(ticks(&(0.0..1.0), 5), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(&(1.0..100_000.0), 5), [20e3, 40e3, 60e3, 80e3, 100e3]);
        assert_eq!(ticks(&(0.93..1.31), 5), [1.0, 1.1, 1.2, 1.3]);
        assert_eq!(ticks(&(-1e-5..2.1e-4), 5), [0.0, 5e-5, 1e-4, 1.5e-4, 2e-4]);
    }

    #[test]
    fn gaps_and_lone_points() {
        let points = [(1.0, 1.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, 2.0), (5.0, f64::INFINITY)];
        let figure = |points| {
            let mut out = String::new();
            let curves = vec![Curve::new("", "training", points)];
            Figure { title: "loss", curves, wide: false }.write(&mut out);
            out
        };
        let out = figure(&points);
        assert!(out.contains("d=\"M0 946.43L333.33 53.57M1000 53.57L1000 53.57\"/>"), "{out}");
        assert!(!out.contains("NaN") && !out.contains("inf"), "{out}");
        assert_eq!(figure(&points[2..3]), "");
    }
}
