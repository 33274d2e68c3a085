//! A drawing backend on plain memory, with the glyphs of Noto Sans Mono that a crate brings, written as PNG. Pixels outside are dropped.

use super::PictureError;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind};
use std::convert::Infallible;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

const WEIGHT: FontWeight = FontWeight::Regular;
const HEIGHT: RasterHeight = RasterHeight::Size16;

/// White pixels: RGB, rows from the top.
pub(super) fn blank((width, height): (u32, u32)) -> Vec<u8> {
    vec![255; width as usize * height as usize * 3]
}

/// Writes pixels as `blank` makes them.
pub(super) fn write(pixels: &[u8], (width, height): (u32, u32), path: &Path) -> Result<(), PictureError> {
    let file = File::create(path).map_err(|source| PictureError::Write { path: path.to_owned(), source })?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(pixels));
    written.map_err(|error| PictureError::Encode { path: path.to_owned(), reason: error.to_string() })
}

/// Draws on somebody's pixels, because a drawing area keeps its backend.
pub(super) struct Raster<'a> {
    size: (u32, u32),
    pixels: &'a mut [u8],
}

impl<'a> Raster<'a> {
    /// `pixels`: as `blank` makes them for that size.
    pub(super) fn new(pixels: &'a mut [u8], size: (u32, u32)) -> Raster<'a> {
        assert_eq!(pixels.len(), size.0 as usize * size.1 as usize * 3);
        Raster { size, pixels }
    }

    fn blend(&mut self, (x, y): BackendCoord, (red, green, blue): (u8, u8, u8), alpha: f64) {
        let (width, height) = (self.size.0 as i32, self.size.1 as i32);
        if !(0..width).contains(&x) || !(0..height).contains(&y) {
            return;
        }
        let at = (y as usize * width as usize + x as usize) * 3;
        for (pixel, colour) in self.pixels[at..at + 3].iter_mut().zip([red, green, blue]) {
            *pixel = (f64::from(*pixel) * (1.0 - alpha) + f64::from(colour) * alpha).round() as u8;
        }
    }
}

/// Width and height of `text` in pixels.
fn text_size(text: &str) -> (i32, i32) {
    ((text.chars().count() * get_raster_width(WEIGHT, HEIGHT)) as i32, HEIGHT.val() as i32)
}

impl DrawingBackend for Raster<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Result<(), DrawingErrorKind<Infallible>> {
        self.blend(point, color.rgb, color.alpha);
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, pos: BackendCoord) -> Result<(), DrawingErrorKind<Infallible>> {
        let ((width, height), color, transform) = (text_size(text), style.color(), style.transform());
        let left = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Center => -width / 2,
            HPos::Right => -width,
        };
        let top = match style.anchor().v_pos {
            VPos::Top => 0,
            VPos::Center => -height / 2,
            VPos::Bottom => -height,
        };
        let advance = get_raster_width(WEIGHT, HEIGHT) as i32;
        for (i, letter) in text.chars().enumerate() {
            let Some(glyph) = get_raster(letter, WEIGHT, HEIGHT).or_else(|| get_raster('?', WEIGHT, HEIGHT)) else { continue };
            for (y, row) in glyph.raster().iter().enumerate() {
                for (x, ink) in row.iter().enumerate().filter(|(_, ink)| **ink > 0) {
                    let (dx, dy) = transform.transform(left + i as i32 * advance + x as i32, top + y as i32);
                    self.blend((pos.0 + dx, pos.1 + dy), color.rgb, color.alpha * f64::from(*ink) / 255.0);
                }
            }
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, _style: &S) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let (width, height) = text_size(text);
        Ok((width as u32, height as u32))
    }
}
