//! The results as a chart: connect latency, and how long a change takes, over the number of services.

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;

use super::Options;
use super::figures::{Figure, Results};
use super::mode::Mode;

const SIZE: (u32, u32) = (960, 400);

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

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
    panel(&left, options, results, Figure::Connect, "connect() to the last service, p50, µs")?;
    panel(&right, options, results, Figure::Change, "endpoint change until it is reached, ms")?;
    root.present()?;
    Ok(())
}

/// Both axes logarithmic: what is compared differs by factors.
fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    options: &Options,
    results: &Results,
    figure: Figure,
    title: &str,
) -> Drawn {
    let lines: Vec<(Mode, Vec<(f64, f64)>)> = Mode::ALL
        .into_iter()
        .map(|mode| {
            let points = options.services.iter().filter_map(|services| {
                let count = f64::from(u32::try_from(*services).ok()?);
                Some((count, results.median(*services, mode, figure)?))
            });
            let mut points: Vec<(f64, f64)> = points.collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            (mode, points)
        })
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let values = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let (Some(low), Some(high)) =
        (values().map(|point| point.1).reduce(f64::min), values().map(|point| point.1).reduce(f64::max))
    else {
        return Ok(());
    };
    let last = values().map(|point| point.0).fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((1.0..last * 1.2).log_scale(), (low * 0.7..high * 2.5).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("services")
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| if *value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") })
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
        .draw()?;
    Ok(())
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
