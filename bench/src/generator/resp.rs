//! redis' protocol, as much of it as SET and GET of one key a session need. Bytes of the server under test: nothing in them is trusted.
//! Source: https://redis.io/docs/latest/develop/reference/protocol-spec/ (RESP2).

use super::judge::Outcome;

/// What SET stores: as long as a short session ID.
const VALUE: &str = "value-of-16-byte";
/// Bytes of a value; a longer one is refused.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// The command of a function: `get`, or `set` for all others. `{session}` stands for the key, of `key_bytes`.
pub(super) fn command(function: &str, key_bytes: usize) -> String {
    if function == "get" {
        format!("*2\r\n$3\r\nGET\r\n${key_bytes}\r\n{{session}}\r\n")
    } else {
        format!("*3\r\n$3\r\nSET\r\n${key_bytes}\r\n{{session}}\r\n${}\r\n{VALUE}\r\n", VALUE.len())
    }
}

/// What the first answer in `input` is worth, and its length; `None` when more must come.
pub(super) fn judge_resp(input: &[u8]) -> Option<(Outcome, Option<usize>)> {
    let nonsense = |why| Some((Outcome::Wrong(why), None));
    let Some(end) = memchr::memmem::find(&input[..input.len().min(512)], b"\r\n") else {
        return if input.len() >= 512 { nonsense("the answer's first line does not end") } else { None };
    };
    let (line, line_bytes) = (&input[1..end.max(1)], end + 2);
    match input.first() {
        Some(b'+') => Some((Outcome::Good, Some(line_bytes))),
        Some(b'-') => Some((Outcome::Failed(500), Some(line_bytes))),
        Some(b'$') if line == b"-1" => Some((Outcome::Good, Some(line_bytes))),
        Some(b'$') => {
            match super::judge::number(line).and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| *bytes <= VALUE_BYTES_MAX) {
                Some(bytes) if input.len() < line_bytes + bytes + 2 => None,
                Some(bytes) if input[line_bytes..line_bytes + bytes] == *VALUE.as_bytes() => {
                    Some((Outcome::Good, Some(line_bytes + bytes + 2)))
                }
                Some(_) => nonsense("the value is not what was set"),
                None => nonsense("the value's length is no number"),
            }
        }
        _ => nonsense("the answer is no RESP"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_and_their_length_is_known() {
        assert_eq!(judge_resp(b"+OK\r\n+OK\r\n"), Some((Outcome::Good, Some(5))));
        assert_eq!(judge_resp(b"$-1\r\n"), Some((Outcome::Good, Some(5))));
        assert_eq!(judge_resp(b"$16\r\nvalue-of-16-byte\r\n"), Some((Outcome::Good, Some(23))));
        assert_eq!(judge_resp(b"-ERR no\r\n"), Some((Outcome::Failed(500), Some(9))));
        for cut in 0..23 {
            assert_eq!(judge_resp(&b"$16\r\nvalue-of-16-byte\r\n"[..cut]), None, "cut at {cut}");
        }
        for bad in [&b"$16\r\nVALUE-of-16-byte\r\n"[..], b"$x\r\n", b"$99999999999\r\n", b"HTTP/1.1\r\n", b"\r\n", &[b'+'; 600]] {
            assert!(matches!(judge_resp(bad), Some((Outcome::Wrong(_), None))), "{bad:?}");
        }
    }

    #[test]
    fn commands_have_their_lengths() {
        assert_eq!(command("get", 10), "*2\r\n$3\r\nGET\r\n$10\r\n{session}\r\n");
        assert_eq!(command("set", 10), "*3\r\n$3\r\nSET\r\n$10\r\n{session}\r\n$16\r\nvalue-of-16-byte\r\n");
    }
}
