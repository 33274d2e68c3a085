//! `counter-rmw-linear`: adds 1 to the decimal text of key `n` in mode 1 and answers with the new text; a critical section, so no update is ever lost.
#![cfg_attr(target_arch = "wasm32", no_std)]

use xfaas_guest::Mode;

fn counter_rmw_linear() -> Result<(), i32> {
    counter::add_one(Mode::Strong)
}

xfaas_guest::handler!(counter_rmw_linear);

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
