//! Where an axis begins and ends, and its ticks. The pictures draw on straight axes; of a logarithmic one they draw the powers.

use super::figure::Scale;

/// Ticks of an axis, about.
const TICKS: f64 = 5.0;
/// Values at which each of a few points has its own tick.
const OWN_TICKS_MAX: usize = 8;
/// Up to so many powers of ten have ticks between them.
const FINE_DECADES_MAX: f64 = 2.0;

/// Places are what is drawn: values, or their powers of ten.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) ticks: Vec<f64>,
    scale: Scale,
}

impl Range {
    /// Of an axis that all `values` fit on. `is_x`: then few values have a tick each; else the axis begins at zero or, if it is logarithmic,
    /// below the least value, so that its bar is seen.
    pub(super) fn of(values: impl Iterator<Item = f64>, scale: Scale, is_x: bool) -> Range {
        let mut values: Vec<f64> = values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else {
            return Range { from: 0.0, to: 1.0, ticks: vec![0.0, 1.0], scale };
        };
        let mut range = match scale {
            Scale::Linear => linear(least.min(0.0), most.max(0.0), is_x),
            Scale::Log => logarithmic(least, most, is_x),
        };
        if is_x && values.len() <= OWN_TICKS_MAX {
            range.ticks = values.iter().map(|value| range.place(*value)).collect();
        }
        range
    }

    /// Where a value is on the axis; none, if a logarithmic one has no place for it.
    pub(super) fn place_of(&self, value: f64) -> Option<f64> {
        (value.is_finite() && (self.scale == Scale::Linear || value > 0.0)).then(|| self.place(value))
    }

    fn place(&self, value: f64) -> f64 {
        if self.scale == Scale::Log { value.log10() } else { value }
    }

    /// The value at a place, in few letters.
    pub(super) fn label(&self, place: f64) -> String {
        short(if self.scale == Scale::Log { 10_f64.powf(place) } else { place })
    }
}

fn linear(least: f64, most: f64, is_x: bool) -> Range {
    let most = if most > least { most } else { least + 1.0 };
    let step = nice_step((most - least) / TICKS);
    let from = (least / step).floor() * step;
    // A line's last point needs no room behind it, but a bar's number needs some above it.
    let to = if is_x { most + (most - least) * 0.02 } else { (most * 1.05 / step).ceil() * step };
    let count = ((to - from) / step + 1e-9).floor() as usize;
    let ticks = (0..=count).map(|tick| from + tick as f64 * step).collect();
    Range { from, to, ticks, scale: Scale::Linear }
}

fn logarithmic(least: f64, most: f64, is_x: bool) -> Range {
    let (low, high) = (least.log10(), most.log10());
    let (from, to) = if is_x {
        let room = ((high - low) * 0.03).max(0.02);
        (low - room, high + room)
    } else if high - low < FINE_DECADES_MAX - 1.0 {
        // Half below the least and half above the most.
        ((least / 2.0).log10(), (most * 2.0).log10())
    } else {
        ((least / 1.5).log10().floor(), (most * 1.5).log10().ceil())
    };
    let parts: &[f64] = if to - from <= FINE_DECADES_MAX { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let step = if to - from > 9.0 { 2 } else { 1 };
    let decades = (from.floor() as i32..=to.ceil() as i32).step_by(step);
    let places = decades.flat_map(|decade| parts.iter().map(move |part| f64::from(decade) + part.log10()));
    let ticks = places.filter(|place| (from - 1e-9..=to + 1e-9).contains(place)).collect();
    Range { from, to, ticks, scale: Scale::Log }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let part = step / power;
    power
        * if part <= 1.0 {
            1.0
        } else if part <= 2.0 {
            2.0
        } else if part <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// A number in at most six letters where that can be: three digits, and k, M or G.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let (divided, unit) = match size {
        _ if size >= 9.995e8 => (value / 1e9, "G"),
        _ if size >= 9.995e5 => (value / 1e6, "M"),
        _ if size >= 9.995e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    format!("{}{unit}", three_digits(divided))
}

/// Three digits that count, without zeros behind the point.
pub(super) fn three_digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value:.0}");
    }
    let decimals = (2 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (0.0105, "0.0105"), (1.0, "1"), (1.5, "1.5"), (250.4, "250"), (1_024.0, "1024"), (15_300.0, "15.3k"), (2e6, "2M")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!(three_digits(0.000_012_34), "0.0000123");
    }

    #[test]
    fn a_straight_axis_begins_at_zero_and_has_round_ticks() {
        let range = Range::of([30.0, 470.0].into_iter(), Scale::Linear, false);
        assert_eq!((range.from, range.to), (0.0, 500.0));
        assert_eq!(range.ticks, [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]);
        let clients = Range::of([1.0, 5.0, 10.0, 20.0, 30.0].into_iter(), Scale::Linear, true);
        assert_eq!(clients.ticks, [1.0, 5.0, 10.0, 20.0, 30.0]);
        assert!(clients.from <= 1.0 && clients.to >= 30.0);
    }

    #[test]
    fn a_logarithmic_axis_has_all_values_inside_and_no_place_for_zero() {
        let range = Range::of([0.0, 0.004, 263.0].into_iter(), Scale::Log, false);
        assert_eq!((range.from, range.to), (-3.0, 3.0));
        assert_eq!(range.ticks.len(), 7);
        assert_eq!((range.label(-3.0).as_str(), range.label(2.0).as_str()), ("0.001", "100"));
        assert_eq!((range.place_of(0.0), range.place_of(100.0)), (None, Some(2.0)));
        let narrow = Range::of([40.0, 90.0].into_iter(), Scale::Log, false);
        assert_eq!(narrow.ticks.iter().map(|tick| narrow.label(*tick)).collect::<Vec<_>>(), ["20", "50", "100"]);
        assert!(narrow.from < 40_f64.log10() && narrow.to > 90_f64.log10());
    }

    #[test]
    fn an_axis_of_nothing_is_still_an_axis() {
        assert_eq!(Range::of([f64::NAN, -1.0].into_iter(), Scale::Log, false).ticks, [0.0, 1.0]);
        let zero = Range::of([0.0].into_iter(), Scale::Linear, false);
        assert!(zero.to > zero.from && zero.ticks.len() > 1);
    }
}
