//! `counter-rmw`: adds 1 to the decimal text of key `n` in mode 0 and answers with the new text; updates of concurrent calls may be lost, no value is ever torn.
#![cfg_attr(target_arch = "wasm32", no_std)]

use xfaas_guest::{Decimal, Error, Mode, parse_u64, set_output, state, write_state};

/// Returned as the guest's code when `n` holds something else than a number that 1 can be added to.
const NOT_A_COUNTER: i32 = 1;

fn counter_rmw() -> Result<(), i32> {
    let mut buffer = [0; Decimal::BYTES_MAX];
    let count = match state(c"n", &mut buffer, Mode::Weak).map_err(Error::code)? {
        Some(text) => parse_u64(text).and_then(|count| count.checked_add(1)).ok_or(NOT_A_COUNTER)?,
        None => 1,
    };
    let text = Decimal::new(count);
    write_state(c"n", text.as_bytes(), Mode::Weak).map_err(Error::code)?;
    set_output(text.as_bytes()).map_err(Error::code)
}

xfaas_guest::handler!(counter_rmw);

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_guest::fake;

    #[test]
    fn every_call_adds_one() {
        fake::reset();
        for count in 1..=12 {
            assert_eq!(handle(), 0);
            assert_eq!(fake::take_output(), count.to_string().as_bytes());
        }
        assert_eq!(fake::value("n"), Some(b"12".to_vec()));
    }

    #[test]
    fn what_is_not_a_number_stays_as_it_is() {
        for text in ["twelve", "18446744073709551615"] {
            fake::reset();
            write_state(c"n", text.as_bytes(), Mode::Weak).expect("written");
            assert_eq!(handle(), NOT_A_COUNTER);
            assert_eq!(fake::value("n"), Some(text.as_bytes().to_vec()));
        }
    }
}
