//! Bytes to requests and replies to bytes: HTTP/1.1 (CONTRACT.md section 1) and datagrams (section 2).
//! No I/O, no clock, no unsafe code. Every byte that comes in here is hostile; work is linear in the input, memory is bounded, and no
//! input panics. The shard drives it: it feeds what it received and sends what is encoded here.

mod datagram;
mod error;
mod http1;
mod reply;
mod request;

pub use self::datagram::{
    Answer, AnswerBody, AnswerError, DatagramHead, RequestTooLarge, decode_datagram, decode_datagram_answer, encode_datagram_error,
    encode_datagram_reply, encode_datagram_request,
};
pub use self::error::ErrorCode;
pub use self::http1::{Http1Decoder, Http1Event, HttpLimits, Phase};
pub use self::reply::{
    CONTINUE, ConnectionHeader, PROBLEM_TYPE, Problem, ReplyHead, encode_problem, encode_reply, encode_reply_over, http_date,
};
pub use self::request::Request;
