//! The curves as a picture: for each way to ask and number of cores, p99 and good answers against what was offered, a line for each way
//! of steering.

use super::CurvePoint;
use crate::picture::Picture;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const PANEL: (u32, u32) = (560, 330);
const FONT: &str = "sans-serif";
/// Height of the legend's strip above all panels: in a panel it would hide what lies there.
const LEGEND: u32 = 36;
const LEGEND_FONT_PIXELS: u32 = 18;
/// From one name of the legend to the next, the line before a name, and the gap between the two.
const NAME_PIXELS: i32 = 150;
const LINE_PIXELS: i32 = 26;
const GAP_PIXELS: i32 = 8;
const COLOURS: [RGBColor; 4] = [RGBColor(0, 90, 160), RGBColor(210, 95, 0), RGBColor(0, 140, 90), RGBColor(150, 40, 130)];

/// What is drawn of a point.
#[derive(Clone, Copy)]
enum Figure {
    P99Ms,
    GoodPerSecond,
}

/// Of at least one point.
pub struct CurvesPicture<'a> {
    points: &'a [CurvePoint],
    /// What was asked, and of how many cores: a row of panels each.
    rows: Vec<(&'static str, usize)>,
    /// All ways of steering: each has its colour in every panel.
    steering: Vec<&'static str>,
}

impl<'a> CurvesPicture<'a> {
    pub fn new(points: &'a [CurvePoint]) -> CurvesPicture<'a> {
        let mut rows: Vec<(&'static str, usize)> = points.iter().map(|point| (point.name, point.cores)).collect();
        rows.sort_unstable();
        rows.dedup();
        let mut steering: Vec<&'static str> = Vec::new();
        for point in points {
            if !steering.contains(&point.steering) {
                steering.push(point.steering);
            }
        }
        CurvesPicture { points, rows, steering }
    }

    fn colour(&self, steering: &str) -> RGBColor {
        let at = self.steering.iter().position(|name| *name == steering).unwrap_or(0);
        COLOURS[at % COLOURS.len()]
    }

    /// The lines of a panel, in the order in which they were measured: way of steering, offered and figure.
    fn lines(&self, row: (&'static str, usize), figure: Figure) -> Vec<(&'static str, Vec<(f64, f64)>)> {
        let mut lines: Vec<(&'static str, Vec<(f64, f64)>)> = Vec::new();
        for point in self.points.iter().filter(|point| (point.name, point.cores) == row) {
            let Some(offered) = point.offered_per_second else { continue };
            let value = match figure {
                Figure::P99Ms => {
                    let Some(p99_us) = point.p99_us else { continue };
                    (p99_us / 1_000.0).max(0.01)
                }
                Figure::GoodPerSecond => point.requests_per_second / 1_000.0,
            };
            match lines.iter_mut().find(|(steering, _)| *steering == point.steering) {
                Some((_, line)) => line.push((offered / 1_000.0, value)),
                None => lines.push((point.steering, vec![(offered / 1_000.0, value)])),
            }
        }
        lines
    }
}

impl Picture for CurvesPicture<'_> {
    fn size(&self) -> (u32, u32) {
        (PANEL.0 * 2, LEGEND + PANEL.1 * self.rows.len().max(1) as u32)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let (legend, root) = root.split_vertically(LEGEND);
        self.legend(&legend)?;
        let panels = root.split_evenly((self.rows.len().max(1), 2));
        for (row, pair) in self.rows.iter().zip(panels.chunks(2)) {
            self.latency(&pair[0], *row)?;
            self.throughput(&pair[1], *row)?;
        }
        Ok(())
    }
}

impl CurvesPicture<'_> {
    fn legend<DB: DrawingBackend>(&self, strip: &DrawingArea<DB, Shift>) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let middle = LEGEND as i32 / 2;
        let style = (FONT, LEGEND_FONT_PIXELS).into_text_style(strip).pos(Pos::new(HPos::Left, VPos::Center));
        for (i, steering) in self.steering.iter().enumerate() {
            let left = GAP_PIXELS * 2 + i as i32 * NAME_PIXELS;
            let line = [(left, middle), (left + LINE_PIXELS, middle)];
            strip.draw(&PathElement::new(line, self.colour(steering).stroke_width(2)))?;
            strip.draw(&Text::new(*steering, (left + LINE_PIXELS + GAP_PIXELS, middle), style.clone()))?;
        }
        Ok(())
    }

    fn latency<DB: DrawingBackend>(
        &self,
        panel: &DrawingArea<DB, Shift>,
        row: (&'static str, usize),
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let lines = self.lines(row, Figure::P99Ms);
        let (end, highest) = ends(&lines);
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{} on {} core(s): p99", row.0, row.1), (FONT, 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end, (0.01..highest.max(0.1)).log_scale())?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("1,000 offered a second").y_desc("p99, ms").light_line_style(TRANSPARENT);
        mesh.x_label_formatter(&|x| format!("{x:.0}")).y_label_formatter(&|y| format!("{y}")).draw()?;
        for (steering, line) in lines {
            chart.draw_series(LineSeries::new(line, self.colour(steering).stroke_width(2)))?;
        }
        Ok(())
    }

    fn throughput<DB: DrawingBackend>(
        &self,
        panel: &DrawingArea<DB, Shift>,
        row: (&'static str, usize),
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let lines = self.lines(row, Figure::GoodPerSecond);
        let (end, highest) = ends(&lines);
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{} on {} core(s): good answers", row.0, row.1), (FONT, 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end, 0.0..highest)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("1,000 offered a second").y_desc("1,000 good a second").light_line_style(TRANSPARENT);
        mesh.x_label_formatter(&|x| format!("{x:.0}")).y_label_formatter(&|y| format!("{y:.0}")).draw()?;
        for (steering, line) in lines {
            chart.draw_series(LineSeries::new(line, self.colour(steering).stroke_width(2)))?;
        }
        Ok(())
    }
}

/// Of the axes: a little past the last point and the highest.
fn ends(lines: &[(&'static str, Vec<(f64, f64)>)]) -> (f64, f64) {
    let points = || lines.iter().flat_map(|(_, line)| line);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.001, f64::max) * 1.05;
    (most(|point| point.0), most(|point| point.1))
}

#[cfg(test)]
mod tests {
    use super::super::report::sample_point;
    use super::*;
    use crate::picture::save;

    #[test]
    fn every_way_of_steering_is_a_line_and_every_case_a_row() {
        let loads = [500.0, 1_000.0, 2_000.0];
        let mut points: Vec<CurvePoint> = Vec::new();
        for (name, cores) in [("http_rmw", 1), ("udp_rmw", 2)] {
            for steering in ["xdp", "off"] {
                points.push(CurvePoint { name, cores, ..sample_point(steering, None, 1_000.0, 200.0) });
                points.extend(loads.map(|load| CurvePoint { name, cores, ..sample_point(steering, Some(load), load.min(990.0), load) }));
            }
        }
        let picture = CurvesPicture::new(&points);
        assert_eq!(picture.rows, [("http_rmw", 1), ("udp_rmw", 2)]);
        let lines = picture.lines(("udp_rmw", 2), Figure::P99Ms);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], ("off", vec![(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)]));
        assert_eq!((picture.colour("xdp"), picture.colour("off")), (COLOURS[0], COLOURS[1]));
        let text = drawn(&picture);
        assert!(text.contains("http_rmw on 1 core(s): p99") && text.contains("udp_rmw on 2 core(s): good answers") && text.contains("xdp"));
    }

    #[test]
    fn the_legend_hides_no_line() {
        let points: Vec<CurvePoint> = ["xdp", "off"]
            .into_iter()
            .flat_map(|steering| [100.0, 2_000.0].map(|load| sample_point(steering, Some(load), load, load)))
            .collect();
        let text = drawn(&CurvesPicture::new(&points));
        let names: Vec<&str> = text.split("<text ").filter(|text| text.contains("\nxdp\n") || text.contains("\noff\n")).collect();
        assert_eq!(names.len(), 2, "{text}");
        let y = |name: &str| name.split_once(" y=\"").and_then(|(_, y)| y.split('"').next()?.parse::<u32>().ok());
        assert!(names.iter().all(|name| y(name).is_some_and(|y| y < LEGEND)), "{names:?}");
    }

    /// The picture as SVG.
    fn drawn(picture: &CurvesPicture<'_>) -> String {
        let directory = tempfile::tempdir().unwrap();
        let svg = directory.path().join("curves.svg");
        save(picture, &svg).unwrap();
        std::fs::read_to_string(&svg).unwrap()
    }
}
