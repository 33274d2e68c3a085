//! One case: whom to ask, what, and what the answers and the counters afterwards must be.

use crate::load::{BodyRule, DatagramLoad, Expect, FetchError, HttpLoad, LoadError, LoadPlan, LoadReport, fetch, run_datagrams, run_http};
use crate::servers::Server;
use xfaas_common::ids::SessionId;

/// What is measured under load, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    LimitHttp,
    Nginx,
    HttpEcho,
    HttpRead,
    HttpRmw,
    HttpRmwLinear,
    UdpEcho,
    UdpRead,
    UdpRmw,
    UdpRmwLinear,
}

/// Share of datagrams that may stay unanswered on loopback before the run is an error.
const LOST_SHARE_MAX: f64 = 0.001;
/// Datagrams under way for each connection that HTTP has: as many datagrams as connections leave a fast server's core idle for a quarter of the
/// time, because what a turn answers comes back together.
const DATAGRAMS_A_CONNECTION: usize = 4;
const ECHO_BODY: &str = "echo-of-16-bytes";

#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    #[error("the load failed")]
    Load(#[from] LoadError),
    #[error("{wrong} of {replies} replies were wrong; the first: {first}")]
    WrongReplies { wrong: u64, replies: u64, first: String },
    #[error("{lost} of {sent} datagrams were not answered")]
    Lost { lost: u64, sent: u64 },
    #[error("nothing was answered in the measured time")]
    Nothing,
    #[error("a counter cannot be read")]
    Fetch(#[from] FetchError),
    #[error("session {session}: the counter was answered with {status} and {body:?}")]
    Counter { session: String, status: u16, body: String },
    #[error(
        "the counters sum up to {sum} after {acknowledged} acknowledged increments (and {lost} that may have run): updates were lost or doubled"
    )]
    Sum { sum: u64, acknowledged: u64, lost: u64 },
}

impl Case {
    pub const ALL: [Case; 10] = [
        Case::LimitHttp,
        Case::Nginx,
        Case::HttpEcho,
        Case::HttpRead,
        Case::HttpRmw,
        Case::HttpRmwLinear,
        Case::UdpEcho,
        Case::UdpRead,
        Case::UdpRmw,
        Case::UdpRmwLinear,
    ];

    /// The `name` of its row.
    pub const fn name(self) -> &'static str {
        match self {
            Case::LimitHttp => "limit_http",
            Case::Nginx => "nginx",
            Case::HttpEcho => "http_echo",
            Case::HttpRead => "http_read",
            Case::HttpRmw => "http_rmw",
            Case::HttpRmwLinear => "http_rmw_linear",
            Case::UdpEcho => "udp_echo",
            Case::UdpRead => "udp_read",
            Case::UdpRmw => "udp_rmw",
            Case::UdpRmwLinear => "udp_rmw_linear",
        }
    }

    /// False for the rows that only the table has.
    pub const fn is_in_json(self) -> bool {
        !matches!(self, Case::UdpEcho | Case::UdpRead | Case::UdpRmwLinear)
    }

    /// True where the `xfaas` process is asked.
    pub const fn is_xfaas(self) -> bool {
        !matches!(self, Case::LimitHttp | Case::Nginx)
    }

    const fn function(self) -> &'static str {
        match self {
            Case::HttpEcho | Case::UdpEcho => "echo",
            Case::HttpRead | Case::UdpRead => "counter-read",
            Case::LimitHttp | Case::Nginx | Case::HttpRmw | Case::UdpRmw => "counter-rmw",
            Case::HttpRmwLinear | Case::UdpRmwLinear => "counter-rmw-linear",
        }
    }

    const fn is_datagram(self) -> bool {
        matches!(self, Case::UdpEcho | Case::UdpRead | Case::UdpRmw | Case::UdpRmwLinear)
    }

    const fn is_echo(self) -> bool {
        matches!(self, Case::HttpEcho | Case::UdpEcho)
    }

    const fn is_linear(self) -> bool {
        matches!(self, Case::HttpRmwLinear | Case::UdpRmwLinear)
    }

    fn body_rule(self) -> BodyRule {
        if self.is_echo() { BodyRule::Equals(ECHO_BODY.into()) } else { BodyRule::Number }
    }

    /// Session IDs of 16 bytes that no other case and round uses.
    fn session_ids(self, round: usize, sessions: usize) -> Vec<SessionId> {
        let text = |i| format!("{:x}-r{:04}-{:08}", self as u8, round % 10_000, i % 100_000_000);
        (0..sessions).map(|i| SessionId::new(text(i).as_bytes()).expect("16 visible bytes")).collect()
    }

    /// Requests under way at once where HTTP has so many connections.
    pub const fn under_way(self, connections: usize) -> usize {
        if self.is_datagram() { connections * DATAGRAMS_A_CONNECTION } else { connections }
    }

    /// Runs the case once on the calling thread: prepares, loads, checks. `under_way`: requests at once, each on a connection of its own, or datagrams.
    pub fn run(
        self,
        server: &Server,
        plan: &LoadPlan<'_>,
        under_way: usize,
        sessions: usize,
        round: usize,
    ) -> Result<LoadReport, CaseError> {
        let ids = self.session_ids(round, sessions);
        if matches!(self, Case::HttpRead | Case::UdpRead) {
            for id in &ids {
                count_of(server, "counter-rmw", id)?; // so that there is something to read
            }
        }
        let report = if self.is_datagram() {
            let payload = if self.is_echo() { ECHO_BODY.as_bytes() } else { b"" };
            let (target, function, body) = (server.address(), self.function(), self.body_rule());
            run_datagrams(&DatagramLoad { target, function, sessions: &ids, payload, in_flight: under_way, body }, plan)?
        } else {
            let requests: Vec<(Vec<u8>, Vec<u8>)> =
                ids.iter().map(|id| (id.as_bytes().to_vec(), http_request(server, self.function(), id, self.is_echo()))).collect();
            let expect = Expect { body: self.body_rule(), names_session: self.is_xfaas() };
            run_http(&HttpLoad { target: server.address(), sessions: &requests, connections: under_way, expect }, plan)?
        };
        check(&report)?;
        if self.is_linear() {
            let mut sum = 0;
            for id in &ids {
                sum += count_of(server, "counter-read", id)?;
            }
            check_sum(sum, &report)?;
        }
        Ok(report)
    }
}

/// One whole request. All servers get the same one, but for the body of an echo.
fn http_request(server: &Server, function: &str, session: &SessionId, has_body: bool) -> Vec<u8> {
    let address = server.address();
    let head = format!("/f/{function} HTTP/1.1\r\nhost: {address}\r\nx-session-id: {session}\r\n");
    let text =
        if has_body { format!("POST {head}content-length: {}\r\n\r\n{ECHO_BODY}", ECHO_BODY.len()) } else { format!("GET {head}\r\n") };
    text.into_bytes()
}

/// Asks a counter function for its number.
fn count_of(server: &Server, function: &str, session: &SessionId) -> Result<u64, CaseError> {
    let fetched = fetch(server.address(), &http_request(server, function, session, false))?;
    let body = String::from_utf8_lossy(&fetched.body).into_owned();
    match body.parse() {
        Ok(count) if fetched.status == 200 => Ok(count),
        _ => Err(CaseError::Counter { session: session.to_string(), status: fetched.status, body }),
    }
}

fn check(report: &LoadReport) -> Result<(), CaseError> {
    let good = report.acknowledged_sum();
    if report.wrong > 0 {
        let first = report.first_wrong.clone().unwrap_or_default();
        return Err(CaseError::WrongReplies { wrong: report.wrong, replies: good + report.wrong, first });
    }
    if report.lost as f64 > LOST_SHARE_MAX * good as f64 {
        return Err(CaseError::Lost { lost: report.lost, sent: good + report.lost });
    }
    if report.latency_ns.is_empty() { Err(CaseError::Nothing) } else { Ok(()) }
}

/// Holds the counters against what was acknowledged. A lost datagram may have run or not.
fn check_sum(sum: u64, report: &LoadReport) -> Result<(), CaseError> {
    let acknowledged = report.acknowledged_sum();
    if (acknowledged..=acknowledged + report.lost).contains(&sum) {
        return Ok(());
    }
    Err(CaseError::Sum { sum, acknowledged, lost: report.lost })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use std::collections::HashSet;

    fn report(acknowledged: &[u64], lost: u64, wrong: u64) -> LoadReport {
        let mut latency_ns = Histogram::new(3).unwrap();
        latency_ns.record(1_000).unwrap();
        LoadReport { latency_ns, measured_ns: 1, acknowledged: acknowledged.to_vec(), wrong, first_wrong: None, lost }
    }

    #[test]
    fn sessions_are_of_one_length_and_of_one_case_and_round() {
        let mut seen = HashSet::new();
        for case in Case::ALL {
            for round in 0..3 {
                for id in case.session_ids(round, 80) {
                    assert_eq!(id.length(), 16);
                    assert!(seen.insert(id), "{id} twice");
                }
            }
        }
    }

    #[test]
    fn counters_must_match_the_acknowledged_increments() {
        assert!(check_sum(30, &report(&[10, 20], 0, 0)).is_ok());
        assert!(check_sum(29, &report(&[10, 20], 0, 0)).is_err());
        assert!(check_sum(31, &report(&[10, 20], 0, 0)).is_err());
        assert!(check_sum(31, &report(&[10, 20], 1, 0)).is_ok());
    }

    #[test]
    fn one_wrong_reply_fails_the_case() {
        assert!(check(&report(&[10], 0, 0)).is_ok());
        assert!(matches!(check(&report(&[10], 0, 1)), Err(CaseError::WrongReplies { wrong: 1, replies: 11, .. })));
        assert!(matches!(check(&report(&[10], 1, 0)), Err(CaseError::Lost { .. })));
        assert!(check(&report(&[10_000], 1, 0)).is_ok());
    }

    #[test]
    fn the_promised_rows_are_in_the_json() {
        let names: Vec<&str> = Case::ALL.iter().filter(|case| case.is_in_json()).map(|case| case.name()).collect();
        assert_eq!(names, ["limit_http", "nginx", "http_echo", "http_read", "http_rmw", "http_rmw_linear", "udp_rmw"]);
    }
}
