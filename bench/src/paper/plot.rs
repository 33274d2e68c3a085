//! A figure's charts as one picture: panels, each with its title, its legend above the drawing where it hides nothing, and axes with their
//! units. Everything is placed in pixels, so that the SVG and the PNG are alike.

use super::axes::{Range, short};
use super::figure::{BarChart, Chart, LineChart};
use crate::picture::Picture;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const PANEL: (u32, u32) = (640, 430);
const FONT: &str = "sans-serif";
const TEXT_PIXELS: i32 = 14;
/// Of a letter: that of the PNG's glyphs, which are wider than those of any font that an SVG is shown with.
const LETTER_PIXELS: i32 = 8;
const LINE_PIXELS: i32 = 20;
const MARGIN: i32 = 14;
/// Beside the drawing: the numbers, and the axis' name, which is turned.
const LEFT: i32 = 84;
/// Under the drawing of lines: the numbers and the axis' name.
const BELOW_LINES: i32 = 48;
const SAMPLE_PIXELS: i32 = 18;
/// Between two entries of a legend.
const GAP_PIXELS: i32 = 18;
/// Of a group's width that its bars take.
const BARS_SHARE: f64 = 0.84;
const GREY: RGBColor = RGBColor(225, 225, 225);
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 90, 160),
    RGBColor(210, 95, 0),
    RGBColor(0, 140, 90),
    RGBColor(150, 40, 130),
    RGBColor(90, 90, 90),
    RGBColor(200, 160, 0),
    RGBColor(90, 180, 220),
    RGBColor(170, 60, 60),
];

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// At least one chart.
pub(super) struct FigurePicture<'a>(pub(super) &'a [Chart]);

impl FigurePicture<'_> {
    fn columns(&self) -> u32 {
        if self.0.len() > 1 { 2 } else { 1 }
    }
}

impl Picture for FigurePicture<'_> {
    fn size(&self) -> (u32, u32) {
        let rows = (self.0.len() as u32).div_ceil(self.columns()).max(1);
        // One panel alone has more room.
        if self.0.len() < 2 { (PANEL.0 * 5 / 4, PANEL.1) } else { (PANEL.0 * self.columns(), PANEL.1 * rows) }
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        let columns = self.columns() as usize;
        let panels = root.split_evenly((self.0.len().div_ceil(columns).max(1), columns));
        for (chart, panel) in self.0.iter().zip(panels) {
            match chart {
                Chart::Lines(chart) => draw_lines(&panel, chart)?,
                Chart::Bars(chart) => draw_bars(&panel, chart)?,
            }
        }
        Ok(())
    }
}

/// The drawing's place in its panel, in pixels.
#[derive(Clone, Copy)]
struct Frame {
    left: i32,
    top: i32,
    right: i32,
    bottom: i32,
}

impl Frame {
    fn x(&self, range: &Range, place: f64) -> i32 {
        self.left + ((place - range.from) / (range.to - range.from) * f64::from(self.right - self.left)).round() as i32
    }

    fn y(&self, range: &Range, place: f64) -> i32 {
        self.bottom - ((place - range.from) / (range.to - range.from) * f64::from(self.bottom - self.top)).round() as i32
    }
}

fn width_of(text: &str) -> i32 {
    text.chars().count() as i32 * LETTER_PIXELS
}

fn style(h_pos: HPos, v_pos: VPos) -> TextStyle<'static> {
    TextStyle::from((FONT, TEXT_PIXELS)).pos(Pos::new(h_pos, v_pos))
}

fn text<DB: DrawingBackend>(panel: &DrawingArea<DB, Shift>, text: &str, at: (i32, i32), style: &TextStyle<'_>) -> Drawn<DB> {
    panel.draw_text(text, style, at)
}

fn line<DB: DrawingBackend>(panel: &DrawingArea<DB, Shift>, points: Vec<(i32, i32)>, colour: RGBColor, width: u32) -> Drawn<DB> {
    panel.draw(&PathElement::new(points, colour.stroke_width(width)))
}

fn rectangle<DB: DrawingBackend>(panel: &DrawingArea<DB, Shift>, corners: [(i32, i32); 2], colour: RGBColor) -> Drawn<DB> {
    panel.draw(&Rectangle::new(corners, colour.filled()))
}

/// Title and legend. Output: where the drawing may begin, from above.
fn draw_head<DB: DrawingBackend>(
    panel: &DrawingArea<DB, Shift>,
    title: &str,
    names: &[&str],
) -> Result<i32, DrawingAreaErrorKind<DB::ErrorType>> {
    let width = panel.dim_in_pixel().0 as i32;
    let title_style = TextStyle::from((FONT, TEXT_PIXELS + 2)).pos(Pos::new(HPos::Left, VPos::Top));
    let mut top = MARGIN;
    for title in wrapped(title, width - 2 * MARGIN) {
        text(panel, &title, (MARGIN, top), &title_style)?;
        top += LINE_PIXELS;
    }
    let (mut left, mut top) = (MARGIN, top + 6);
    for (name, colour) in names.iter().zip(COLOURS.iter().cycle()) {
        let entry = SAMPLE_PIXELS + 6 + width_of(name) + GAP_PIXELS;
        if left > MARGIN && left + entry > width {
            (left, top) = (MARGIN, top + LINE_PIXELS);
        }
        let middle = top + TEXT_PIXELS / 2;
        rectangle(panel, [(left, middle - 4), (left + SAMPLE_PIXELS, middle + 4)], *colour)?;
        text(panel, name, (left + SAMPLE_PIXELS + 6, middle), &style(HPos::Left, VPos::Center))?;
        left += entry;
    }
    Ok(top + LINE_PIXELS + 8)
}

/// The axis at the left, with a line across the drawing at each tick.
fn draw_heights<DB: DrawingBackend>(panel: &DrawingArea<DB, Shift>, frame: Frame, range: &Range, label: &str) -> Drawn<DB> {
    for tick in &range.ticks {
        let y = frame.y(range, *tick);
        line(panel, vec![(frame.left, y), (frame.right, y)], GREY, 1)?;
        text(panel, &range.label(*tick), (frame.left - 6, y), &style(HPos::Right, VPos::Center))?;
    }
    let turned = style(HPos::Center, VPos::Top).transform(FontTransform::Rotate270);
    text(panel, label, (4, (frame.top + frame.bottom) / 2), &turned)
}

fn draw_axes<DB: DrawingBackend>(panel: &DrawingArea<DB, Shift>, frame: Frame) -> Drawn<DB> {
    line(panel, vec![(frame.left, frame.top), (frame.left, frame.bottom), (frame.right, frame.bottom)], BLACK, 1)
}

fn draw_lines<DB: DrawingBackend>(panel: &DrawingArea<DB, Shift>, chart: &LineChart) -> Drawn<DB> {
    let (width, height) = panel.dim_in_pixel();
    let names: Vec<&str> = chart.lines.iter().map(|line| line.name.as_str()).collect();
    let top = draw_head(panel, &chart.title, &names)?;
    let frame = Frame { left: LEFT, top, right: width as i32 - MARGIN * 2, bottom: height as i32 - BELOW_LINES - MARGIN / 2 };
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let x = Range::of(points().map(|point| point.0), chart.x.scale, true);
    let y = Range::of(points().map(|point| point.1), chart.y.scale, false);
    draw_heights(panel, frame, &y, &chart.y.label)?;
    let mut free_from = i32::MIN;
    for tick in &x.ticks {
        let (at, label) = (frame.x(&x, *tick), x.label(*tick));
        line(panel, vec![(at, frame.top), (at, frame.bottom)], GREY, 1)?;
        // A number that would run into the one before it is left out.
        if at - width_of(&label) / 2 > free_from {
            text(panel, &label, (at, frame.bottom + 6), &style(HPos::Center, VPos::Top))?;
            free_from = at + width_of(&label) / 2;
        }
    }
    text(panel, &chart.x.label, ((frame.left + frame.right) / 2, frame.bottom + 28), &style(HPos::Center, VPos::Top))?;
    for (series, colour) in chart.lines.iter().zip(COLOURS.into_iter().cycle()) {
        let places = series.points.iter().filter_map(|point| Some((frame.x(&x, x.place_of(point.0)?), frame.y(&y, y.place_of(point.1)?))));
        let places: Vec<(i32, i32)> = places.collect();
        if series.has_marks {
            places.iter().try_for_each(|at| panel.draw(&Circle::new(*at, 4, colour.filled())))?;
        }
        line(panel, places, colour, 2)?;
    }
    draw_axes(panel, frame)
}

fn draw_bars<DB: DrawingBackend>(panel: &DrawingArea<DB, Shift>, chart: &BarChart) -> Drawn<DB> {
    let (width, height) = panel.dim_in_pixel();
    let names: Vec<&str> = chart.series.iter().map(|series| series.name.as_str()).collect();
    let top = draw_head(panel, &chart.title, &names)?;
    let right = width as i32 - MARGIN;
    let group_pixels = f64::from(right - LEFT) / chart.groups.len().max(1) as f64;
    let groups: Vec<Vec<String>> = chart.groups.iter().map(|group| wrapped(group, group_pixels as i32 - LETTER_PIXELS)).collect();
    let lines = groups.iter().map(Vec::len).max().unwrap_or(1) as i32;
    let frame = Frame { left: LEFT, top, right, bottom: height as i32 - lines * LINE_PIXELS - MARGIN };
    let y = Range::of(chart.series.iter().flat_map(|series| &series.values).filter_map(|value| *value), chart.y.scale, false);
    draw_heights(panel, frame, &y, &chart.y.label)?;
    let bar_pixels = group_pixels * BARS_SHARE / chart.series.len().max(1) as f64;
    let numbers = chart.series.iter().flat_map(|series| &series.values).flatten().map(|value| width_of(&short(*value)));
    let has_numbers = numbers.max().is_some_and(|widest| widest <= bar_pixels as i32 + LETTER_PIXELS / 2);
    for (i, group) in groups.iter().enumerate() {
        let group_left = f64::from(frame.left) + group_pixels * i as f64;
        for (row, words) in group.iter().enumerate() {
            let at = ((group_left + group_pixels / 2.0) as i32, frame.bottom + 6 + row as i32 * LINE_PIXELS);
            text(panel, words, at, &style(HPos::Center, VPos::Top))?;
        }
        for (j, (series, colour)) in chart.series.iter().zip(COLOURS.into_iter().cycle()).enumerate() {
            let Some(value) = series.values.get(i).copied().flatten() else { continue };
            // What a logarithmic axis has no place for, zero, is a bar without height.
            let place = y.place_of(value).unwrap_or(y.from);
            let left = group_left + group_pixels * (1.0 - BARS_SHARE) / 2.0 + bar_pixels * j as f64;
            let (left, right) = (left.round() as i32, (left + bar_pixels).round() as i32 - 1);
            let above = frame.y(&y, place);
            rectangle(panel, [(left, above), (right, frame.bottom)], colour)?;
            if has_numbers {
                text(panel, &short(value), ((left + right) / 2, above - 2), &style(HPos::Center, VPos::Bottom))?;
            }
        }
    }
    draw_axes(panel, frame)
}

/// Lines of whole words, each at most `width` pixels wide unless a word is wider.
fn wrapped(text: &str, width: i32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width_of(line) + LETTER_PIXELS + width_of(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::figure::{Axis, BarSeries, Line};
    use super::*;
    use crate::picture::save;

    fn charts() -> [Chart; 2] {
        let points = |factor: f64| [1.0, 5.0, 10.0, 20.0, 30.0].map(|clients| (clients, clients * factor)).to_vec();
        let lines = LineChart {
            title: "RMW: access latency".to_owned(),
            x: Axis::linear("clients"),
            y: Axis::log("mean, us"),
            lines: vec![
                Line::marked("session state", points(0.4)),
                Line::curve("redis with a lock", points(80.0)),
                Line::marked("object store", points(9_000.0)),
            ],
        };
        let series = |name, values: [Option<f64>; 4]| BarSeries::new(name, values.to_vec());
        let bars = BarChart {
            title: "Starts".to_owned(),
            y: Axis::log("ms"),
            groups: ["Fork", "CopySession of a session", "ColdSession 1 MiB", "traditional container"].map(str::to_owned).to_vec(),
            series: vec![
                series("the paper", [Some(1.98), Some(263.0), Some(268.0), Some(262.0)]),
                series("here", [Some(0.011), Some(0.25), None, Some(0.0)]),
            ],
        };
        [Chart::Lines(lines), Chart::Bars(bars)]
    }

    #[test]
    fn words_are_wrapped_and_never_cut() {
        assert_eq!(wrapped("traditional container", LETTER_PIXELS * 13), ["traditional", "container"]);
        assert_eq!(wrapped("one two three", LETTER_PIXELS * 7), ["one two", "three"]);
        assert!(wrapped("", 10).is_empty());
    }

    #[test]
    fn a_picture_has_all_names_and_grows_by_panels() {
        let charts = charts();
        let directory = tempfile::tempdir().unwrap();
        let svg = directory.path().join("figure.svg");
        let png = save(&FigurePicture(&charts), &svg).unwrap();
        if let Some(kept) = std::env::var_os("XFAAS_KEEP_PICTURE") {
            std::fs::copy(&png, kept).unwrap();
        }
        let text = std::fs::read_to_string(&svg).unwrap();
        for word in ["RMW: access latency", "redis with a lock", "mean, us", "clients", "traditional", "the paper", "263"] {
            assert!(text.contains(word), "{word}");
        }
        assert_eq!(FigurePicture(&charts).size(), (PANEL.0 * 2, PANEL.1));
        assert_eq!(FigurePicture(&charts[..1]).size().1, PANEL.1);
        assert_eq!(FigurePicture(&[charts.as_slice(), &charts[..1]].concat()).size(), (PANEL.0 * 2, PANEL.1 * 2));
    }
}
