//! Adds 1 to the decimal text of key `n`: what `counter-rmw` and `counter-rmw-linear` do, which differ in the mode alone.
#![cfg_attr(target_arch = "wasm32", no_std)]

use xfaas_guest::{Decimal, Error, Mode, parse_u64, set_output, state, write_state};

/// The guest's code when `n` holds something else than a number that 1 can be added to.
pub const NOT_A_COUNTER: i32 = 1;

/// Reads, adds and writes in `mode`; the output is the new text.
#[inline(always)] // the mode becomes a constant
pub fn add_one(mode: Mode) -> Result<(), i32> {
    let mut buffer = [0; Decimal::BYTES_MAX];
    let count = match state(c"n", &mut buffer, mode).map_err(Error::code)? {
        Some(text) => parse_u64(text).and_then(|count| count.checked_add(1)).ok_or(NOT_A_COUNTER)?,
        None => 1,
    };
    let text = Decimal::new(count);
    write_state(c"n", text.as_bytes(), mode).map_err(Error::code)?;
    set_output(text.as_bytes()).map_err(Error::code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_guest::fake;

    #[test]
    fn every_call_adds_one() {
        for mode in [Mode::Weak, Mode::Strong] {
            fake::reset();
            for count in 1..=12 {
                assert_eq!(add_one(mode), Ok(()));
                assert_eq!(fake::take_output(), count.to_string().as_bytes());
            }
            assert_eq!(fake::value("n"), Some(b"12".to_vec()));
        }
    }

    #[test]
    fn what_is_not_a_number_stays_as_it_is() {
        for text in ["twelve", "18446744073709551615"] {
            fake::reset();
            write_state(c"n", text.as_bytes(), Mode::Weak).expect("written");
            assert_eq!(add_one(Mode::Strong), Err(NOT_A_COUNTER));
            assert_eq!(fake::value("n"), Some(text.as_bytes().to_vec()));
        }
    }
}
