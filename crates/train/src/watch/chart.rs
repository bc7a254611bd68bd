//! Line charts, one below the other, as SVG.

use crate::error::TrainError;
use plotters::{
    backend::SVGBackend,
    chart::{ChartBuilder, ChartContext, SeriesLabelPosition},
    coord::{Shift, cartesian::Cartesian2d, types::RangedCoordf64},
    drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea},
    element::{Circle, PathElement},
    series::LineSeries,
    style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, WHITE},
};
use std::{ops::Range, path::Path};

/// Colours that differ for the colour-blind, too (Tableau 10).
pub(super) const PALETTE: [RGBColor; 8] = [
    RGBColor(78, 121, 167),
    RGBColor(242, 142, 43),
    RGBColor(89, 161, 79),
    RGBColor(225, 87, 89),
    RGBColor(118, 183, 178),
    RGBColor(176, 122, 161),
    RGBColor(156, 117, 95),
    RGBColor(237, 201, 72),
];
const WIDTH: u32 = 900;
const GRID: RGBColor = RGBColor(225, 225, 225);
const AXIS: RGBColor = RGBColor(120, 120, 120);
const FONT: &str = "sans-serif";

/// A set of axes and its lines.
pub(super) struct Chart<'a> {
    pub title: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    pub x_scale: Scale,
    pub height: u32,
    pub lines: Vec<Line<'a>>,
}

/// Scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// Values are above 0.
    Logarithmic,
}

impl Scale {
    /// Where a value is drawn.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.log2(),
        }
    }

    /// The value that is drawn at a place, as a tick shows it.
    fn value(self, place: f64) -> f64 {
        match self {
            Self::Linear => place,
            // Ranks are powers of two; of others three digits are enough.
            Self::Logarithmic => format!("{:.2e}", place.exp2()).parse().unwrap_or(place.exp2()),
        }
    }
}

/// A line; without a name it is not in the legend.
pub(super) struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<(f64, f64)>,
    pub color: RGBColor,
    pub light: bool,
    pub marks: bool,
}

impl<'a> Line<'a> {
    pub(super) fn new(name: &'a str, points: Vec<(f64, f64)>, color: RGBColor) -> Self {
        Self { name, points, color, light: false, marks: false }
    }

    /// Marks each point with a dot.
    pub(super) fn marked(mut self) -> Self {
        self.marks = true;
        self
    }

    fn style(&self) -> ShapeStyle {
        if self.light { self.color.mix(0.45).stroke_width(1) } else { self.color.stroke_width(2) }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Writes the charts as one picture.
pub(super) fn draw(path: &Path, charts: &[Chart]) -> Result<(), TrainError> {
    let mut svg = String::new();
    let height = charts.iter().map(|chart| chart.height).sum();
    let picture = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let drawn = draw_below(&picture, charts).and_then(|()| picture.present());
    drop(picture);
    drawn.map_err(|error| TrainError::format(path, format!("it cannot be drawn: {error}")))?;
    burn_lora_io::replace(path, svg.as_bytes()).map_err(|error| TrainError::io(path, error))
}

fn draw_below(picture: &Area, charts: &[Chart]) -> Drawn {
    picture.fill(&WHITE)?;
    let mut rest = picture.clone();
    for chart in charts {
        let (area, below) = rest.split_vertically(chart.height);
        chart.draw(&area)?;
        rest = below;
    }
    Ok(())
}

impl Chart<'_> {
    fn draw(&self, area: &Area) -> Drawn {
        let (x, y) = self.ranges();
        let mut builder = ChartBuilder::on(area);
        builder.margin(12).margin_right(24).x_label_area_size(44).y_label_area_size(76);
        if !self.title.is_empty() {
            builder.caption(self.title, (FONT, 22).into_font().color(&BLACK));
        }
        let mut axes = builder.build_cartesian_2d(x, y)?;
        axes.configure_mesh()
            .x_desc(self.x_label)
            .y_desc(self.y_label)
            .x_labels(if self.x_scale == Scale::Linear { 11 } else { 6 })
            .y_labels(self.height as usize / 50)
            .x_label_formatter(&|place| tick(self.x_scale.value(*place)))
            .y_label_formatter(&|value| tick(*value))
            .label_style((FONT, 14))
            .axis_desc_style((FONT, 16))
            .axis_style(AXIS)
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .draw()?;
        for line in &self.lines {
            line.draw(&mut axes, self.x_scale)?;
        }
        if self.lines.iter().any(Line::has_label) {
            axes.configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .label_font((FONT, 15))
                .margin(8)
                .draw()?;
        }
        Ok(())
    }

    /// Returns the ranges of the axes: all finite points, and a margin above and below.
    fn ranges(&self) -> (Range<f64>, Range<f64>) {
        let points = || self.lines.iter().flat_map(|line| &line.points).filter(|p| is_finite(p));
        let x = range(points().map(|point| self.x_scale.place(point.0)), 0.0);
        let y = range(points().map(|point| point.1), 0.05);
        (x, y)
    }
}

impl Line<'_> {
    fn has_label(&self) -> bool {
        !self.name.is_empty() && !self.points.is_empty()
    }

    fn draw(&self, axes: &mut Axes, x_scale: Scale) -> Drawn {
        let style = self.style();
        let mut points = thinned(&self.points, 2 * WIDTH as usize);
        points.iter_mut().for_each(|point| point.0 = x_scale.place(point.0));
        // The first piece carries the name.
        let mut named = !self.has_label();
        for piece in points.split(|point| !is_finite(point)) {
            let drawn = axes.draw_series(LineSeries::new(piece.iter().copied(), style))?;
            if !named {
                named = true;
                drawn
                    .label(self.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            }
        }
        // A line of one point would be invisible.
        if self.marks || points.len() == 1 {
            let finite = points.iter().filter(|point| is_finite(point));
            axes.draw_series(finite.map(|&point| Circle::new(point, 3, self.color.filled())))?;
        }
        Ok(())
    }
}

pub(super) fn is_finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

/// Returns the range from the lowest to the highest value, with a relative `margin` on both sides;
/// never empty.
pub(super) fn range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let all = values.fold(None, |all: Option<(f64, f64)>, value| {
        Some(all.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
    });
    let (low, high) = all.unwrap_or((0.0, 1.0));
    let margin = match high - low {
        0.0 if low == 0.0 => 1.0,
        0.0 => 0.5 * low.abs(),
        width => margin * width,
    };
    low - margin..high + margin
}

/// Keeps the lowest and the highest of every few points, `most` in all, so that the plot of a long
/// run is not large.
pub(super) fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let few = points.len().div_ceil(most / 2);
    if few <= 2 {
        return points.to_vec();
    }
    let mut thinned = Vec::new();
    for chunk in points.chunks(few) {
        let by_y = |i: &usize, j: &usize| chunk[*i].1.total_cmp(&chunk[*j].1);
        let (low, high) = ((0..chunk.len()).min_by(by_y), (0..chunk.len()).max_by(by_y));
        let ends = low.zip(high).map(|(low, high)| [low.min(high), low.max(high)]);
        thinned.extend(ends.into_iter().flatten().map(|i| chunk[i]));
    }
    thinned
}

/// Formats a tick: `0.25`, `1200`, `2e-4`.
fn tick(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        return "0".to_owned();
    }
    let (digits, exponent) = if (1e-3..1e6).contains(&size) {
        (format!("{value:.4}"), String::new())
    } else {
        let text = format!("{value:.2e}");
        text.split_once('e').map_or((text.clone(), String::new()), |(digits, exponent)| {
            (digits.to_owned(), format!("e{exponent}"))
        })
    };
    format!("{}{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks() {
        let cases = [
            (0.0, "0"),
            (1200.0, "1200"),
            (0.25, "0.25"),
            (-1.5, "-1.5"),
            (0.00015000000000000001, "1.5e-4"),
            (2e6, "2e6"),
        ];
        for (value, text) in cases {
            assert_eq!(tick(value), text);
        }
    }

    #[test]
    fn ranges_are_never_empty() {
        assert_eq!(range([].into_iter(), 0.0), 0.0..1.0);
        assert_eq!(range([2.0].into_iter(), 0.0), 1.0..3.0);
        assert_eq!(range([0.0].into_iter(), 0.0), -1.0..1.0);
        assert_eq!(range([1.0, 3.0].into_iter(), 0.05), 0.9..3.1);
    }

    #[test]
    fn thinning_keeps_spikes_and_gaps() {
        let mut points: Vec<_> = (0..90_000).map(|x| (x as f64, 1.0)).collect();
        points[777].1 = 9.0;
        points[40_001].1 = f64::NAN;
        let thinned = thinned(&points, 1800);
        assert_eq!(thinned.len(), 1800);
        assert!(thinned.contains(&(777.0, 9.0)));
        assert!(thinned.iter().any(|point| point.1.is_nan()));
        assert!(thinned.is_sorted_by(|a, b| a.0 <= b.0));
    }
}
