//! The results as a chart: connect latency, and how long a change takes, over the number of services.

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;

use super::Options;
use super::figures::{Figure, Results};
use super::mode::Mode;

const SIZE: (u32, u32) = (960, 420);

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Points of a mode: number of services, value.
type Line = (Mode, Vec<(f64, f64)>);

/// An SVG with two panels.
pub(super) fn draw(options: &Options, results: &Results) -> Result<String> {
    let mut svg = String::new();
    panels(options, results, &mut svg).context("draw the chart")?;
    Ok(svg)
}

fn panels(options: &Options, results: &Results, svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    let connects = lines(options, results, Figure::Connect);
    if let Some((_, highest)) = range(&connects) {
        panel(&left, connects, "connect() to the last service, p50, µs", 0.0..highest * 1.5)?;
    }
    let changes = lines(options, results, Figure::Change);
    if let Some((lowest, highest)) = range(&changes) {
        // What is compared differs by factors.
        let logarithmic = (lowest * 0.7..highest * 5.0).log_scale();
        panel(&right, changes, "a changed endpoint until it is reached, ms", logarithmic)?;
    }
    root.present()
}

fn lines(options: &Options, results: &Results, figure: Figure) -> Vec<Line> {
    let line = |mode| {
        let points = options.services.iter().filter_map(|services| {
            let count = f64::from(u32::try_from(*services).ok()?);
            Some((count, results.median(*services, mode, figure)?))
        });
        let mut points: Vec<(f64, f64)> = points.collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        (mode, points)
    };
    Mode::ALL.into_iter().map(line).filter(|(_, points)| !points.is_empty()).collect()
}

/// The lowest and the highest value.
fn range(lines: &[Line]) -> Option<(f64, f64)> {
    let values = || lines.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
    Some((values().reduce(f64::min)?, values().reduce(f64::max)?))
}

fn panel<Y>(area: &DrawingArea<SVGBackend<'_>, Shift>, lines: Vec<Line>, title: &str, values: Y) -> Drawn
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let most = lines.iter().flat_map(|(_, points)| points).map(|point| point.0).fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((1.0..most * 1.2).log_scale(), values)?;
    chart
        .configure_mesh()
        .x_desc("services")
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (mode, points) in lines {
        let colour = colour(mode);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(mode.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
}

/// Colours that differ to the colour-blind as well (Okabe and Ito).
const fn colour(mode: Mode) -> RGBColor {
    match mode {
        Mode::Direct => RGBColor(0, 0, 0),
        Mode::IptablesNft => RGBColor(213, 94, 0),
        Mode::IptablesLegacy => RGBColor(230, 159, 0),
        Mode::Nftables => RGBColor(86, 180, 233),
        Mode::Mesh => RGBColor(0, 158, 115),
    }
}
