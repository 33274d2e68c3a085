//! `counter-rmw`: adds 1 to the decimal text of key `n` in mode 0 and answers with the new text; updates of concurrent calls may be lost, no value is ever torn.
#![cfg_attr(target_arch = "wasm32", no_std)]

use xfaas_guest::Mode;

fn counter_rmw() -> Result<(), i32> {
    counter::add_one(Mode::Weak)
}

xfaas_guest::handler!(counter_rmw);

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_guest::fake;

    #[test]
    fn the_guest_counts() {
        fake::reset();
        assert_eq!((handle(), handle()), (0, 0));
        assert_eq!(fake::take_output(), b"2");
    }
}
