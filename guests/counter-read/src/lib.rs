//! `counter-read`: the decimal text of key `n`, read in mode 0; `0` while there is none.
#![cfg_attr(target_arch = "wasm32", no_std)]

use xfaas_guest::{Decimal, Error, Mode, set_output, state};

fn counter_read() -> Result<(), Error> {
    let mut buffer = [0; Decimal::BYTES_MAX];
    set_output(state(c"n", &mut buffer, Mode::Weak)?.unwrap_or(b"0"))
}

xfaas_guest::handler!(counter_read);

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_guest::{fake, write_state};

    #[test]
    fn the_value_comes_back_and_nothing_is_written() {
        fake::reset();
        assert_eq!(handle(), 0);
        assert_eq!(fake::take_output(), b"0");
        assert_eq!(fake::value("n"), None);
        write_state(c"n", b"41", Mode::Weak).expect("written");
        assert_eq!(handle(), 0);
        assert_eq!(fake::take_output(), b"41");
    }
}
