//! One drawing as SVG and as PNG. Neither needs a font of the machine: the SVG names one, the PNG brings its glyphs.

mod raster;

use plotters::coord::Shift;
use plotters::prelude::*;
use raster::{Raster, blank, write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("cannot draw {}: {reason}", path.display())]
    Draw { path: PathBuf, reason: String },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot encode {}: {reason}", path.display())]
    Encode { path: PathBuf, reason: String },
}

/// What can be drawn on any backend.
pub trait Picture {
    /// Pixels, width and height.
    fn size(&self) -> (u32, u32);

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>>;
}

/// Writes `svg` and, beside it, the same with the ending `png`. Output: that path.
pub fn save(picture: &impl Picture, svg: &Path) -> Result<PathBuf, PictureError> {
    let failed = |path: &Path, error: String| PictureError::Draw { path: path.to_owned(), reason: error };
    {
        let root = SVGBackend::new(svg, picture.size()).into_drawing_area();
        let drawn = root.fill(&WHITE).and_then(|()| picture.draw(&root)).and_then(|()| root.present());
        drawn.map_err(|error| failed(svg, error.to_string()))?;
    }
    let png = svg.with_extension("png");
    let mut pixels = blank(picture.size());
    {
        let root = Raster::new(&mut pixels, picture.size()).into_drawing_area();
        let drawn = root.fill(&WHITE).and_then(|()| picture.draw(&root)).and_then(|()| root.present());
        drawn.map_err(|error| failed(&png, error.to_string()))?;
    }
    write(&pixels, picture.size(), &png)?;
    Ok(png)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample;

    impl Picture for Sample {
        fn size(&self) -> (u32, u32) {
            (300, 200)
        }

        fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
            let mut chart = ChartBuilder::on(root)
                .caption("caption", ("sans-serif", 18))
                .x_label_area_size(40)
                .y_label_area_size(50)
                .build_cartesian_2d(0.0..10.0, (1.0..1000.0).log_scale())?;
            chart.configure_mesh().x_desc("below").y_desc("beside").draw()?;
            chart.draw_series(LineSeries::new([(0.0, 1.0), (10.0, 900.0)], RED.stroke_width(2)))?;
            Ok(())
        }
    }

    #[test]
    fn the_same_picture_is_written_twice() {
        let directory = tempfile::tempdir().unwrap();
        let svg = directory.path().join("sample.svg");
        let png = save(&Sample, &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.contains("caption") && text.trim_end().ends_with("</svg>"));
        let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(png).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        assert_eq!((reader.info().width, reader.info().height), (300, 200));
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut bytes).unwrap();
        let has = |colour: [u8; 3]| bytes.chunks_exact(3).filter(|pixel| **pixel == colour).count();
        assert!(has([255, 0, 0]) > 200, "the line");
        assert!(has([255, 255, 255]) > 30_000, "the paper");
        // The caption's glyphs, in the strip above the chart.
        let dark = bytes[..300 * 3 * 18].chunks_exact(3).filter(|pixel| pixel[0] < 100).count();
        assert!(dark > 30, "{dark} dark pixels in the caption");
        assert!(save(&Sample, Path::new("/nonexistent/sample.svg")).is_err());
    }
}
