//! How a value's number lies in the bytes of a key: in every word, each time in another form, so that a torn or foreign value shows.

const WORD_BYTES: usize = 8;

fn word(value: u64, index: usize, bytes: usize) -> u64 {
    if index == 0 { value } else { value.rotate_left(index as u32) ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ bytes as u64 }
}

/// The bytes of a value, a multiple of 8.
pub fn bytes_of(value: u64, bytes: usize) -> Vec<u8> {
    assert!(bytes > 0 && bytes.is_multiple_of(WORD_BYTES), "whole words");
    (0..bytes / WORD_BYTES).flat_map(|index| word(value, index, bytes).to_le_bytes()).collect()
}

/// The value that these bytes are. `None`: of none, so they are torn.
pub fn value_of(bytes: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(bytes.get(..WORD_BYTES)?.try_into().ok()?);
    (bytes == bytes_of(value, bytes.len())).then_some(value)
}

#[test]
fn a_value_is_known_by_its_bytes_and_a_torn_one_is_none() {
    for bytes in [8, 1_024] {
        assert_eq!(value_of(&bytes_of(7 << 32 | 9, bytes)), Some(7 << 32 | 9));
    }
    let [old, new] = [bytes_of(1, 1_024), bytes_of(2, 1_024)];
    for torn_at in (8..1_024).step_by(8) {
        assert_eq!(value_of(&[&new[..torn_at], &old[torn_at..]].concat()), None, "torn at {torn_at}");
    }
    assert_eq!(value_of(&new[..512]), None, "cut short");
}
