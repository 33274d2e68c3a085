//! A checkpoint as bytes: one session of one app with all its keys and values at one moment. docs/PROTOCOL.md, "Checkpoints".
//! Called on the checkpoints' thread only. What is decoded here may be anything: a length is believed only after its check.
//!
//! ```text
//! "XFCP" | u8 format version | u8 encoding (0 plain, 1 zstd) | u16 0 | u64 number | u32 bytes of the record | u32 bytes as stored | u32 CRC-32C
//! then the record (`state::Record`), as stored
//! ```
//! All numbers are little-endian. The checksum is of all bytes but its own.

use crate::state::Record;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::CHECKPOINT_BYTES_MAX;

const MAGIC: [u8; 4] = *b"XFCP";
const FORMAT_VERSION: u8 = 1;
const HEAD_BYTES: usize = 28;
const CRC_AT: usize = HEAD_BYTES - 4;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// The fastest one that compresses: the store is waited for anyway, the core is not to be.
const ZSTD_LEVEL: i32 = 1;
/// Compression pays when it takes off this part, one in so many.
const PAYS_PART: usize = 10;
/// Too short to be worth a try.
const COMPRESS_BYTES_MIN: usize = 128;

/// Bytes that are not the checkpoint they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it has {bytes} bytes, fewer than a head")]
    Short { bytes: usize },
    #[error("it does not begin as a checkpoint of format {FORMAT_VERSION}")]
    NotOurs,
    #[error("its lengths do not add up")]
    Length,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it cannot be decompressed")]
    Compression,
    #[error("it holds no record of its app and session")]
    Record,
    #[error("it is checkpoint {number} under another name")]
    Number { number: u64 },
}

/// Which of a session's checkpoints: a count that goes up, and when the first of the timers in it is due, so that a listing tells that. In an object's
/// name it is one number: older checkpoints have the count alone there, and so does one without timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointNumber(u64);

impl CheckpointNumber {
    /// `count`: 1 and more; 0: there is none. `due_s`: seconds since 1970-01-01 UTC; 0: it has no timers.
    pub fn new(count: u32, due_s: u32) -> CheckpointNumber {
        CheckpointNumber(u64::from(due_s) << 32 | u64::from(count))
    }

    /// As an object's name has it.
    pub fn of_name(number: u64) -> CheckpointNumber {
        CheckpointNumber(number)
    }

    pub fn in_name(self) -> u64 {
        self.0
    }

    pub fn count(self) -> u32 {
        self.0 as u32
    }

    pub fn due_s(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn is_none(self) -> bool {
        self.count() == 0
    }
}

/// Which checkpoint of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointName<'a> {
    pub app: &'a str,
    pub session: &'a SessionId,
    /// `CheckpointNumber::in_name`.
    pub number: u64,
}

/// Encodes a record of the session as a checkpoint. `record`: as `state::record_session` made it. Cost: a compression.
pub fn encode_checkpoint(number: u64, record: &[u8]) -> Vec<u8> {
    let packed = (record.len() >= COMPRESS_BYTES_MIN).then(|| zstd::bulk::compress(record, ZSTD_LEVEL).ok()).flatten();
    let packed = packed.filter(|packed| packed.len() <= record.len() - record.len() / PAYS_PART);
    let (encoding, stored) = packed.as_deref().map_or((PLAIN, record), |packed| (ZSTD, packed));
    let mut out = Vec::with_capacity(HEAD_BYTES + stored.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[FORMAT_VERSION, encoding, 0, 0]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(record.len() as u32).to_le_bytes());
    out.extend_from_slice(&(stored.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), stored);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(stored);
    out
}

/// The record in a checkpoint, whole and checked. Errors: the bytes are not that checkpoint.
pub fn decode_checkpoint(bytes: &[u8], name: &CheckpointName<'_>) -> Result<Vec<u8>, Damage> {
    let (head, stored) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(Damage::Short { bytes: bytes.len() })?;
    let [m0, m1, m2, m3, version, encoding, 0, 0, n0, n1, n2, n3, n4, n5, n6, n7, r0, r1, r2, r3, s0, s1, s2, s3, crc @ ..] = *head else {
        return Err(Damage::NotOurs);
    };
    if [m0, m1, m2, m3] != MAGIC || version != FORMAT_VERSION {
        return Err(Damage::NotOurs);
    }
    let record_bytes = u32::from_le_bytes([r0, r1, r2, r3]) as usize;
    if u32::from_le_bytes([s0, s1, s2, s3]) as usize != stored.len() || record_bytes > CHECKPOINT_BYTES_MAX {
        return Err(Damage::Length);
    }
    if crc32c::crc32c_append(crc32c::crc32c(&head[..CRC_AT]), stored) != u32::from_le_bytes(crc) {
        return Err(Damage::Checksum);
    }
    let record = match encoding {
        PLAIN => stored.to_vec(),
        ZSTD => zstd::bulk::decompress(stored, record_bytes).map_err(|_| Damage::Compression)?,
        _ => return Err(Damage::NotOurs),
    };
    if record.len() != record_bytes {
        return Err(Damage::Length);
    }
    let is_of = |record: &Record<'_>| record.app == name.app && record.session == *name.session;
    let is_whole = Record::decode(&record).is_ok_and(|(record, rest)| rest.is_empty() && is_of(&record));
    if !is_whole {
        return Err(Damage::Record);
    }
    let number = u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
    if number != name.number { Err(Damage::Number { number }) } else { Ok(record) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Region, RegionOptions, record_session};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn session() -> SessionId {
        SessionId::new(b"cart/1..%").unwrap()
    }

    fn name(session: &SessionId, number: u64) -> CheckpointName<'_> {
        CheckpointName { app: "shop", session, number }
    }

    /// A record of a session with these values.
    fn record(values: &[Vec<u8>]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let options = RegionOptions { app: "shop", shard: 0, bytes_max: 16 << 20, hash_tag: 0 };
        let mut region = Region::open_or_create(&folder.path().join("region"), &options).unwrap();
        let namespace = region.find_or_create(&session(), 1).unwrap();
        for (key, value) in values.iter().enumerate() {
            region.write(namespace, format!("key-{key}").as_bytes(), value, usize::MAX).unwrap();
        }
        let mut record = Vec::new();
        record_session(&mut record, "shop", &region, &session(), namespace);
        record
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_checkpoint_comes_back_and_no_damage_goes_unseen(
            values in vec(vec(any::<u8>(), 0..200), 0..6), number in any::<u64>(), at in any::<prop::sample::Index>(), bit in 0_u8..8
        ) {
            let record = record(&values);
            let mut bytes = encode_checkpoint(number, &record);
            prop_assert_eq!(decode_checkpoint(&bytes, &name(&session(), number)), Ok(record));
            for cut in [0, HEAD_BYTES, bytes.len() - 1] {
                prop_assert!(decode_checkpoint(&bytes[..cut.min(bytes.len() - 1)], &name(&session(), number)).is_err());
            }
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_checkpoint(&bytes, &name(&session(), number)).is_err());
        }

        #[test]
        fn any_bytes_are_refused(mut bytes in vec(any::<u8>(), 0..400), keep_head in any::<bool>()) {
            if keep_head && bytes.len() >= HEAD_BYTES {
                // As far as the checks can be led on: everything is right but the record.
                bytes[..8].copy_from_slice(b"XFCP\x01\x01\0\0");
                let stored = (bytes.len() - HEAD_BYTES) as u32;
                bytes[16..20].copy_from_slice(&1_000_u32.to_le_bytes());
                bytes[20..24].copy_from_slice(&stored.to_le_bytes());
                let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), &bytes[HEAD_BYTES..]);
                bytes[24..28].copy_from_slice(&crc.to_le_bytes());
            }
            prop_assert!(decode_checkpoint(&bytes, &name(&session(), 1)).is_err());
        }
    }

    #[test]
    fn what_compresses_is_compressed_and_what_does_not_is_kept_plain() {
        let zeros = record(&[vec![0; 100_000]]);
        let bytes = encode_checkpoint(1, &zeros);
        assert!(bytes[5] == ZSTD && bytes.len() < 1_000, "{}", bytes.len());
        assert_eq!(decode_checkpoint(&bytes, &name(&session(), 1)).unwrap(), zeros);
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        });
        let bytes = encode_checkpoint(1, &record(&[noise.take(10_000).collect()]));
        assert!(bytes[5] == PLAIN && bytes.len() > 10_000);
    }

    #[test]
    fn numbers_of_the_old_form_have_no_time() {
        for (count, due_s) in [(1, 0), (7, 1), (u32::MAX, u32::MAX), (0, 5)] {
            let number = CheckpointNumber::of_name(CheckpointNumber::new(count, due_s).in_name());
            assert_eq!((number.count(), number.due_s(), number.is_none()), (count, due_s, count == 0));
        }
        assert_eq!(CheckpointNumber::of_name(12), CheckpointNumber::new(12, 0));
    }

    #[test]
    fn a_checkpoint_of_somebody_else_is_refused() {
        let bytes = encode_checkpoint(7, &record(&[]));
        let other = SessionId::new(b"cart/2").unwrap();
        assert_eq!(decode_checkpoint(&bytes, &name(&other, 7)), Err(Damage::Record));
        assert_eq!(decode_checkpoint(&bytes, &CheckpointName { app: "other", session: &session(), number: 7 }), Err(Damage::Record));
        assert_eq!(decode_checkpoint(&bytes, &name(&session(), 8)), Err(Damage::Number { number: 7 }));
    }
}
