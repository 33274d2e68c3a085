//! The curves as a picture: for each way to ask and number of cores, p99 and good answers against what was offered, a line for each way
//! of steering.

use super::CurvePoint;
use crate::picture::Picture;
use plotters::coord::Shift;
use plotters::prelude::*;

const PANEL: (u32, u32) = (560, 330);
const FONT: &str = "sans-serif";
/// Of the legend: its box is measured for this size, the letters are always as wide as `picture/raster.rs` has them.
const LABEL_PIXELS: u32 = 18;
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
}

impl<'a> CurvesPicture<'a> {
    pub fn new(points: &'a [CurvePoint]) -> CurvesPicture<'a> {
        let mut rows: Vec<(&'static str, usize)> = points.iter().map(|point| (point.name, point.cores)).collect();
        rows.sort_unstable();
        rows.dedup();
        CurvesPicture { points, rows }
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
        (PANEL.0 * 2, PANEL.1 * self.rows.len().max(1) as u32)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let panels = root.split_evenly((self.rows.len().max(1), 2));
        for (row, pair) in self.rows.iter().zip(panels.chunks(2)) {
            self.latency(&pair[0], *row)?;
            self.throughput(&pair[1], *row)?;
        }
        Ok(())
    }
}

impl CurvesPicture<'_> {
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
        for ((steering, line), colour) in lines.into_iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(steering)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        let mut labels = chart.configure_series_labels();
        labels
            .label_font((FONT, LABEL_PIXELS))
            .position(SeriesLabelPosition::UpperLeft)
            .margin(10)
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()
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
        for ((_, line), colour) in lines.into_iter().zip(COLOURS) {
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
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
        let directory = tempfile::tempdir().unwrap();
        let svg = directory.path().join("curves.svg");
        save(&picture, &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.contains("http_rmw on 1 core(s): p99") && text.contains("udp_rmw on 2 core(s): good answers") && text.contains("xdp"));
    }
}
