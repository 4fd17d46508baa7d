//! The chart for `docs/benchmarks.md`: one bar per lane and rival, how many times better millrace
//! is, with its spread.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figures::{LaneFigures, Ratio, Spread};
use crate::lanes::Measure;
use crate::record::Machine;
use crate::server::Variant;

const WIDTH: u32 = 860;
const BAR: i32 = 26;
const LEFT: i32 = 330;
const TOP: i32 = 76;

struct Bar {
    label: String,
    against: &'static str,
    median: f64,
    min: f64,
    max: f64,
}

/// Draws every ratio so that longer is better: where less is better it is turned round.
pub fn draw(path: &Path, machine: &Machine, all: &[LaneFigures]) -> Result<(), String> {
    let bars: Vec<Bar> = all
        .iter()
        .flat_map(|figures| figures.ratios().into_iter().map(|ratio| bar(figures, ratio)))
        .collect();
    if bars.is_empty() {
        return Ok(());
    }
    let height = TOP + bars.len() as i32 * BAR + 50;
    let mut svg = String::new();
    paint(&mut svg, height, machine, &bars).map_err(|error| format!("chart: {error}"))?;
    std::fs::write(path, svg).map_err(|error| format!("{}: {error}", path.display()))
}

fn bar(figures: &LaneFigures, ratio: Ratio) -> Bar {
    let Ratio { against, measure, spread } = ratio;
    let Spread { median, min, max, .. } = spread;
    let (what, turned) = match measure {
        Measure::RequestsPerCpuSecond => ("requests per CPU-second", false),
        Measure::PayloadsPerCpuSecond => ("payloads per CPU-second", false),
        Measure::RequestsPerSecond => ("requests per second", false),
        Measure::LatencyP50 => ("p50, inverse", true),
        Measure::LatencyP99 => ("p99, inverse", true),
        Measure::LatencyP999 => ("p99.9, inverse", true),
        Measure::BytesPerConnection => ("memory, inverse", true),
    };
    let label = format!("{}: {what}", figures.lane.name);
    let (median, min, max) =
        if turned { (1.0 / median, 1.0 / max, 1.0 / min) } else { (median, min, max) };
    Bar { label, against, median, min, max }
}

type Painted<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn paint<'a>(svg: &'a mut String, height: i32, machine: &Machine, bars: &[Bar]) -> Painted<'a> {
    let root = SVGBackend::with_string(svg, (WIDTH, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let font = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    let right = |size: i32| font(size).pos(Pos::new(HPos::Right, VPos::Center));
    let left = |size: i32| font(size).pos(Pos::new(HPos::Left, VPos::Center));
    let title =
        "millrace against what each bar names: how many times better (bar: median; line: spread)";
    root.draw(&Text::new(title, (16, 22), left(19)))?;
    let Machine { date, cpu, cores, kernel, commit, .. } = machine;
    let source = format!("{date}, {cpu}, {cores} cores, kernel {kernel}, commit {commit}");
    root.draw(&Text::new(source, (16, 46), left(15)))?;

    let longest = bars.iter().map(|bar| bar.max).fold(1.0, f64::max) * 1.15;
    let x = |ratio: f64| LEFT + (ratio / longest * f64::from(WIDTH as i32 - LEFT - 70)) as i32;
    let bottom = TOP + bars.len() as i32 * BAR;
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + row as i32 * BAR + BAR / 2;
        let color = if bar.against == Variant::TokioLean.name() {
            RGBColor(221, 132, 82)
        } else {
            RGBColor(76, 114, 176)
        };
        root.draw(&Text::new(bar.label.clone(), (LEFT - 10, y), right(16)))?;
        let corners = [(LEFT, y - BAR / 2 + 4), (x(bar.median), y + BAR / 2 - 4)];
        root.draw(&Rectangle::new(corners, color.filled()))?;
        root.draw(&PathElement::new([(x(bar.min), y), (x(bar.max), y)], BLACK.stroke_width(2)))?;
        let text = format!("{:.2} × {}", bar.median, bar.against);
        root.draw(&Text::new(text, (x(bar.max.max(bar.median)) + 8, y), left(15)))?;
    }
    root.draw(&PathElement::new([(x(1.0), TOP - 6), (x(1.0), bottom + 6)], BLACK.stroke_width(1)))?;
    let centre = font(15).pos(Pos::new(HPos::Center, VPos::Center));
    root.draw(&Text::new("level (1.0)", (x(1.0), bottom + 20), centre))?;
    root.present()
}
