//! The curves as a picture: how many requests were answered by when, one panel for each way to read and write.

use super::{BurstRow, Mode};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (1_100, 460);
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 6] =
    [RGBColor(0, 90, 160), RGBColor(210, 95, 0), RGBColor(0, 140, 90), RGBColor(150, 40, 130), RGBColor(90, 90, 90), RGBColor(200, 160, 0)];

#[derive(Debug, thiserror::Error)]
#[error("cannot draw the curves: {reason}")]
pub struct PlotError {
    reason: String,
}

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for PlotError {
    fn from(error: DrawingAreaErrorKind<E>) -> PlotError {
        PlotError { reason: error.to_string() }
    }
}

/// Draws `rows` into the SVG file `path`. Errors: it cannot be written.
pub fn plot(rows: &[BurstRow], path: &Path) -> Result<(), PlotError> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let end_ms = rows.iter().map(|row| row.last_ms).fold(1.0, f64::max) * 1.02;
    let requests = rows.iter().map(|row| row.requests).max().unwrap_or(1);
    for (panel, mode) in root.split_evenly((1, 2)).iter().zip(Mode::ALL) {
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{}: {requests} requests at once on one session", mode.name()), (FONT, 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..end_ms, 0.0..requests as f64)?;
        chart
            .configure_mesh()
            .x_desc("ms since the burst began")
            .y_desc("requests answered")
            .x_label_formatter(&|ms| format!("{ms:.0}"))
            .y_label_formatter(&|count| format!("{count:.0}"))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let of_mode = rows.iter().filter(|row| row.function == mode.name());
        for (row, colour) in of_mode.zip(COLOURS.iter().cycle()) {
            let steps = row.delays_ms.iter().enumerate().flat_map(|(done, at_ms)| [(*at_ms, done as f64), (*at_ms, done as f64 + 1.0)]);
            let line = LineSeries::new(std::iter::once((0.0, 0.0)).chain(steps), colour.stroke_width(2));
            let colour = *colour;
            chart
                .draw_series(line)?
                .label(label(row))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .margin(30)
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()?;
    }
    Ok(root.present()?)
}

fn label(row: &BurstRow) -> String {
    match row.containers_max {
        1 => format!("workers_max {}", row.workers_max),
        containers => format!("workers_max {} in each of {containers} containers", row.workers_max),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Room;
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_curve_is_in_the_picture() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bursts.svg");
        let row = |mode, workers_max, containers_max| {
            BurstRow::new(mode, Room { workers_max, containers_max }, Duration::from_millis(1), (1..=20).map(f64::from).collect(), 20.0)
        };
        let rows: Vec<BurstRow> = Mode::ALL
            .into_iter()
            .flat_map(|mode| [(1, 1), (2, 1), (8, 1), (4, 2)].map(|(workers, containers)| row(mode, workers, containers)))
            .collect();
        plot(&rows, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.matches("workers_max ").count(), text.matches("of 2 containers").count()), (8, 2));
        assert!(text.contains("rmw_linear") && text.trim_end().ends_with("</svg>"));
        assert!(plot(&rows, Path::new("/nonexistent/bursts.svg")).is_err());
    }
}
