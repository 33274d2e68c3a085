//! `echo`: the body back, whatever its length.
#![cfg_attr(target_arch = "wasm32", no_std)]

use xfaas_guest::{Error, Input, read_input, set_output, with_scratch};

/// Bytes read at once: enough for most bodies, and inside the memory's first page.
const FIRST_READ_BYTES: usize = 32_768;

fn echo() -> Result<(), Error> {
    let body_bytes = with_scratch(FIRST_READ_BYTES, |buffer| {
        let body_bytes = read_input(Input::Body, buffer)?;
        if let Some(body) = buffer.get(..body_bytes) {
            set_output(body)?;
        }
        Ok(body_bytes)
    })??;
    if body_bytes <= FIRST_READ_BYTES {
        return Ok(());
    }
    with_scratch(body_bytes, |buffer| {
        read_input(Input::Body, buffer)?;
        set_output(buffer)
    })?
}

xfaas_guest::handler!(echo);

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_guest::fake;

    #[test]
    fn the_body_comes_back_whatever_its_length() {
        for length_bytes in [0, 1, FIRST_READ_BYTES, FIRST_READ_BYTES + 1, 1 << 20] {
            fake::reset();
            let body: Vec<u8> = (0..length_bytes).map(|i| (i % 251) as u8).collect();
            fake::set_input(Input::Body, &body);
            assert_eq!(handle(), 0);
            assert_eq!(fake::take_output(), body);
        }
    }
}
