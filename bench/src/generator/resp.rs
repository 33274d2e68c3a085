//! redis as a target: SET, GET and INCR of one key a session as RESP2 arrays, and its replies held against what they must be. Used in place of
//! HTTP by the streams and by the counters' reader. Source: redis.io, "Redis serialization protocol specification".

use super::asker::{Asker, Patience};
use super::judge::{Outcome, number};
use super::mix::Check;
use super::spec::{GeneratorError, LoadSpec};
use super::template::Template;
use crate::load::excerpt;
use xfaas_common::ids::SessionId;

/// What SET stores when the load has no payload.
const VALUE: &[u8] = b"1";
const LINE_BYTES_MAX: usize = 512;
const BULK_BYTES_MAX: usize = 64 << 20;

/// A reply, as far as the load asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resp<'a> {
    /// `+OK`, `:7` or `$1` and its bytes: the text.
    Text(&'a [u8]),
    /// The key is not there.
    Nil,
    Error,
}

/// The command `function`, such as `set`, up to its key of `key_bytes`, and what follows the key. SET stores the payload.
pub(super) fn command(function: &str, key_bytes: usize, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let value = (function == "set").then_some(if payload.is_empty() { VALUE } else { payload });
    let words = if value.is_some() { 3 } else { 2 };
    let before = format!("*{words}\r\n${}\r\n{}\r\n${key_bytes}\r\n", function.len(), function.to_uppercase());
    let mut after = b"\r\n".to_vec();
    if let Some(value) = value {
        after.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
        after.extend_from_slice(value);
        after.extend_from_slice(b"\r\n");
    }
    (before.into_bytes(), after)
}

/// What the first answer in `input` is worth, and its length if it is one; `None` when more must come.
pub(super) fn judge_resp(input: &[u8], check: Check, payload: &[u8]) -> Option<(Outcome, Option<usize>)> {
    match parse(input) {
        Ok(reply) => reply.map(|(reply, bytes)| (judge(reply, check, payload), Some(bytes))),
        Err(fault) => Some((Outcome::Wrong(fault), None)),
    }
}

/// Input: the bytes received so far of one reply. Output: the reply and its length, `None` when more must come. Errors: no reply.
fn parse(input: &[u8]) -> Result<Option<(Resp<'_>, usize)>, &'static str> {
    let Some(end) = memchr::memmem::find(&input[..input.len().min(LINE_BYTES_MAX)], b"\r\n") else {
        return if input.len() >= LINE_BYTES_MAX { Err("the answer's first line has no end") } else { Ok(None) };
    };
    let (line, after) = (&input[1..end.max(1)], end + 2);
    match input[0] {
        b'+' | b':' => Ok(Some((Resp::Text(line), after))),
        b'-' => Ok(Some((Resp::Error, after))),
        b'$' if line == b"-1" => Ok(Some((Resp::Nil, after))),
        b'$' => {
            let length = number(line).filter(|length| *length <= BULK_BYTES_MAX as u64).ok_or("the answer's length is no number")? as usize;
            let whole = after + length + 2;
            if input.len() < whole {
                return Ok(None);
            }
            Ok(Some((Resp::Text(&input[after..after + length]), whole)))
        }
        _ => Err("the answer is no RESP reply"),
    }
}

fn judge(reply: Resp<'_>, check: Check, payload: &[u8]) -> Outcome {
    match (check, reply) {
        (_, Resp::Error) => Outcome::Failed(500),
        (Check::Anything, _) => Outcome::Good,
        (Check::Echo, Resp::Text(text)) if text == payload => Outcome::Good,
        (Check::Echo, _) => Outcome::Wrong("the output is not the payload"),
        (Check::Number | Check::Counter | Check::Read, Resp::Text(text)) => {
            number(text).map_or(Outcome::Wrong("the output is no number"), Outcome::Number)
        }
        (Check::Number | Check::Counter | Check::Read, Resp::Nil) => Outcome::Wrong("the key is not there"),
    }
}

/// The numbers that `reader` answers for `wanted`, one after another; a key that is not there counts as 0.
pub(super) fn read_numbers(
    spec: &LoadSpec,
    reader: &str,
    sessions: &[SessionId],
    wanted: &[usize],
    patience: &Patience<'_>,
) -> Result<Vec<u64>, GeneratorError> {
    let template = Template::redis(&LoadSpec { payload: Vec::new(), ..spec.clone() }, reader);
    let no_number = |bytes: &[u8]| GeneratorError::Number { function: reader.to_owned(), status: 500, body: excerpt(bytes) };
    let number_of = |bytes: &[u8]| match parse(bytes) {
        Ok(None) => Ok(None),
        Ok(Some((Resp::Nil, length))) => Ok(Some((0, length))),
        Ok(Some((Resp::Text(text), length))) => number(text).map(|number| Some((number, length))).ok_or_else(|| no_number(bytes)),
        Ok(Some((Resp::Error, _))) | Err(_) => Err(no_number(bytes)),
    };
    let (mut asker, mut request) = (Asker::connect(spec.target, patience)?, Vec::new());
    let mut numbers = Vec::with_capacity(wanted.len());
    for session in wanted {
        template.fill(&sessions[*session], &mut request);
        asker.send(&request)?;
        numbers.push(asker.receive(number_of)?.ok_or_else(|| asker.cut())?);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::super::spec::Transport;
    use super::*;

    fn command(function: &str, payload: &[u8]) -> String {
        let mut spec = LoadSpec::new(([127, 0, 0, 1], 81).into(), Transport::Redis, "p-".to_owned());
        spec.payload = payload.to_vec();
        let mut buffer = b"what was there".to_vec();
        Template::redis(&spec, function).fill(&SessionId::new(b"p-00000007").unwrap(), &mut buffer);
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn commands_are_as_redis_wants_them() {
        assert_eq!(command("get", b""), "*2\r\n$3\r\nGET\r\n$10\r\np-00000007\r\n");
        assert_eq!(command("incr", b"x"), "*2\r\n$4\r\nINCR\r\n$10\r\np-00000007\r\n");
        assert_eq!(command("set", b""), "*3\r\n$3\r\nSET\r\n$10\r\np-00000007\r\n$1\r\n1\r\n");
        assert_eq!(command("set", b"abc"), "*3\r\n$3\r\nSET\r\n$10\r\np-00000007\r\n$3\r\nabc\r\n");
    }

    #[test]
    fn replies_are_taken_apart_wherever_they_are_cut() {
        for (bytes, reply) in [
            (&b"+OK\r\n"[..], Resp::Text(b"OK")),
            (b":41\r\n", Resp::Text(b"41")),
            (b"$2\r\n\r\n\r\n", Resp::Text(b"\r\n")),
            (b"$-1\r\n", Resp::Nil),
            (b"-ERR no\r\n", Resp::Error),
        ] {
            assert_eq!(parse(&[bytes, b"+next"].concat()), Ok(Some((reply, bytes.len()))));
            assert!((0..bytes.len()).all(|end| parse(&bytes[..end]) == Ok(None)), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for bytes in [&b"HTTP/1.1 200 OK\r\n"[..], b"$x\r\n", b"$\r\n", b"\r\n", &[b'+'; LINE_BYTES_MAX], b"$99999999999\r\n"] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn replies_are_judged() {
        assert_eq!(judge(Resp::Text(b"7"), Check::Counter, b""), Outcome::Number(7));
        assert_eq!(judge(Resp::Text(b"OK"), Check::Anything, b""), Outcome::Good);
        assert!(matches!(judge(Resp::Nil, Check::Read, b""), Outcome::Wrong(_)));
        assert_eq!(judge(Resp::Error, Check::Anything, b""), Outcome::Failed(500));
    }
}
