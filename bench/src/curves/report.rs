//! The figures as JSON lines and as text, and what they say. Formats and judges only.

use super::Asked;
use crate::generator::us_or_dash;
use serde::Serialize;
use std::fmt::Write as _;

/// What must be left of the top past saturation.
const KEPT_SHARE_MIN: f64 = 0.9;
/// Behind what is asked, in a verdict's name.
const VERDICT_SUFFIX: &str = "_verdict";

/// One load on one server. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    pub name: &'static str,
    pub steering: &'static str,
    pub cores: usize,
    /// The load generator had no core of its own: compare such curves with each other only.
    pub load_shares_cores: bool,
    /// Offered, in parts of the curve's top (`CurveVerdict::top_per_second`). Null for the closed loop.
    pub part_of_top: Option<f64>,
    pub offered_per_second: Option<f64>,
    /// What was due: less than offered where the generator did not get its CPU, and more or less by chance.
    pub arrived_per_second: Option<f64>,
    /// It was short of its CPU, and where it has a core of its own in three tries: the point is of less load.
    pub arrivals_short: bool,
    /// Good answers.
    pub requests_per_second: f64,
    /// 503 and 429.
    pub refused_per_second: f64,
    /// Requests that left and got no answer in time. At the top and past it this, `cut` and `other_statuses` are of all rounds and of the closed
    /// loops beside them.
    pub unanswered: u64,
    /// Of those: the connection ended.
    pub cut: u64,
    /// Requests that were due and never left.
    pub unsent: u64,
    /// Answers with other statuses than 2xx and 503.
    pub other_statuses: u64,
    /// Answers with 503, of the same runs as those.
    #[serde(skip)]
    pub refusals: u64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    /// At the top and past it: the mean of a closed loop just before and one just after.
    pub closed_per_second: Option<f64>,
}

impl CurvePoint {
    /// What is asked and answered a second on a machine that is as fast as it was for the first closed loop, which gave `closed`.
    fn at_speed_of(&self, closed: f64) -> (f64, f64) {
        let speed = self.closed_per_second.filter(|now| *now > 0.0 && closed > 0.0).map_or(1.0, |now| now / closed);
        // What was due, since a point that was offered less than asked for may lie below the top.
        let offered = self.arrived_per_second.or(self.offered_per_second).unwrap_or(f64::INFINITY);
        (offered / speed, self.requests_per_second / speed)
    }

    /// Takes in those of another run of the same point.
    pub(super) fn add_errors(&mut self, other: &CurvePoint) {
        self.refusals += other.refusals;
        self.unanswered += other.unanswered;
        self.cut += other.cut;
        self.other_statuses += other.other_statuses;
    }

    /// Nothing came but good answers and 503s. Datagrams may be lost where a socket's buffer is full; over HTTP every request has an answer.
    fn has_only_503(&self) -> bool {
        self.other_statuses == 0 && (may_lose(self.name) || self.unanswered + self.cut == 0)
    }

    /// Good answers for one of the closed loops beside it; 0 without them.
    pub(super) fn part_of_closed(&self) -> f64 {
        self.closed_per_second.filter(|closed| *closed > 0.0).map_or(0.0, |closed| self.requests_per_second / closed)
    }

    /// The point as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }

    pub(super) fn progress(&self) -> String {
        let offered = self.offered_per_second.map_or("closed loop".to_owned(), |offered| format!("{offered:.0}/s offered"));
        let (name, steering, cores) = (self.name, self.steering, self.cores);
        let p99_us = us_or_dash(self.p99_us, 0);
        let short = if self.arrivals_short { "; THE GENERATOR DID NOT GET ITS CPU" } else { "" };
        format!("{name} {steering} {cores} core(s), {offered}: {:.0}/s, p99 {p99_us} us{short}", self.requests_per_second)
    }
}

/// Whether what is asked so may go without an answer: datagrams.
fn may_lose(name: &str) -> bool {
    name == Asked::UdpRmw.name()
}

/// The most good answers a second at any point of a curve, the closed loop among them, as if the machine had been as fast all the time
/// (`closed_per_second`). 0 without points.
fn top_of(curve: &[CurvePoint]) -> f64 {
    let closed = curve.first().map_or(0.0, |first| first.requests_per_second);
    curve.iter().map(|point| point.at_speed_of(closed).1).fold(0.0, f64::max)
}

/// Says of each point which part of the curve's top was offered, now that the curve is whole.
pub(super) fn set_parts_of_top(curve: &mut [CurvePoint]) {
    let top = top_of(curve);
    let part = |offered: f64| if top > 0.0 { (offered / top * 1_000.0).round() / 1_000.0 } else { 0.0 };
    curve.iter_mut().for_each(|point| point.part_of_top = point.offered_per_second.map(part));
}

/// What a curve does past its top.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurveVerdict {
    pub name: String,
    pub steering: &'static str,
    pub cores: usize,
    pub load_shares_cores: bool,
    /// The most good answers a second of any point, the closed loop among them, which has as many connections and datagrams under way as the
    /// open ones; this and the next as if the machine had been as fast all the time (`closed_per_second`).
    pub top_per_second: f64,
    /// The fewest where more was offered than that.
    pub least_past_top_per_second: f64,
    pub kept_share: f64,
    /// Nothing was refused otherwise than by 503, and over HTTP every request got an answer.
    pub only_503: bool,
    /// Answers with 503.
    pub refusals: u64,
    /// Requests of all points that got no answer; datagrams may be lost.
    pub unanswered: u64,
    /// Of those: the connection ended.
    pub cut: u64,
    /// It bends and does not break.
    pub holds: bool,
}

impl CurveVerdict {
    /// Of one curve; `None` if nothing was offered past its top, since then it cannot be judged.
    pub fn of(curve: &[CurvePoint]) -> Option<CurveVerdict> {
        let first = curve.first()?;
        let open = curve.iter().filter(|point| point.offered_per_second.is_some());
        let open: Vec<(f64, f64)> = open.map(|point| point.at_speed_of(first.requests_per_second)).collect();
        let top = top_of(curve);
        // What a machine that has become faster is offered at `1.0` is no longer all that it takes.
        let past = open.iter().filter(|(offered, _)| *offered > top * 1.05);
        let least = past.map(|(_, good)| *good).min_by(f64::total_cmp)?;
        let kept_share = if top > 0.0 { (least / top * 1_000.0).round() / 1_000.0 } else { 0.0 };
        let only_503 = curve.iter().all(CurvePoint::has_only_503);
        Some(CurveVerdict {
            name: format!("{}{VERDICT_SUFFIX}", first.name),
            steering: first.steering,
            cores: first.cores,
            load_shares_cores: first.load_shares_cores,
            top_per_second: top,
            least_past_top_per_second: least,
            kept_share,
            only_503,
            refusals: curve.iter().map(|point| point.refusals).sum(),
            unanswered: curve.iter().map(|point| point.unanswered).sum(),
            cut: curve.iter().map(|point| point.cut).sum(),
            holds: kept_share >= KEPT_SHARE_MIN && only_503,
        })
    }

    /// The verdict as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }

    /// One line of text.
    fn told(&self) -> String {
        let CurveVerdict { name, steering, cores, top_per_second, refusals, unanswered, cut, .. } = self;
        let shared = if self.load_shares_cores { "*" } else { "" };
        let bend = if self.kept_share >= KEPT_SHARE_MIN { "bends" } else { "BREAKS" };
        let errors = match (self.only_503, refusals) {
            (false, _) => "OTHER ERRORS THAN 503",
            (true, 0) => "no 503s",
            (true, _) => "refusals are 503s",
        };
        let without_answer = if name.strip_suffix(VERDICT_SUFFIX).is_some_and(may_lose) {
            format!("{unanswered} datagrams lost")
        } else {
            format!("{unanswered} unanswered, {cut} of them cut")
        };
        let kept = self.kept_share * 100.0;
        format!(
            "{name} {steering} {cores}{shared} core(s): {bend}: {kept:.0}% of the top, {top_per_second:.0}/s, is kept past it; {errors}; {without_answer}"
        )
    }
}

/// All points and verdicts as text.
pub fn curves_table(points: &[CurvePoint], verdicts: &[CurveVerdict]) -> String {
    let mut text = format!(
        "{:<10}{:<11}{:>6}{:>9}{:>12}{:>12}{:>12}{:>11}{:>11}{:>11}{:>11}{:>7}{:>11}{:>11}\n",
        "name",
        "steering",
        "cores",
        "of top",
        "offered/s",
        "good/s",
        "refused/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "unanswered",
        "cut",
        "unsent",
        "closed/s"
    );
    for point in points {
        let part = point.part_of_top.map_or("closed".to_owned(), |part| format!("{part:.2}"));
        let short = if point.arrivals_short { "!" } else { "" };
        let offered = point.offered_per_second.map_or(String::new(), |offered| format!("{offered:.0}{short}"));
        let [p50, p99, p999] = [point.p50_us, point.p99_us, point.p999_us].map(|us| us_or_dash(us, 1));
        let closed = point.closed_per_second.map_or(String::new(), |closed| format!("{closed:.0}"));
        let shared = if point.load_shares_cores { "*" } else { "" };
        let cores = format!("{}{shared}", point.cores);
        writeln!(
            text,
            "{:<10}{:<11}{cores:>6}{part:>9}{offered:>12}{:>12.0}{:>12.0}{p50:>11}{p99:>11}{p999:>11}{:>11}{:>7}{:>11}{closed:>11}",
            point.name, point.steering, point.requests_per_second, point.refused_per_second, point.unanswered, point.cut, point.unsent
        )
        .expect("a String takes all");
    }
    for verdict in verdicts {
        writeln!(text, "{}", verdict.told()).expect("a String takes all");
    }
    text += "of top: offered, in parts of the most that any load got, the closed loop among them\n";
    text += "closed/s: of closed loops just before and after; how much of the top is kept is told as if the machine had been equally fast all the time\n";
    if points.iter().any(|point| point.arrivals_short) {
        text += "! the generator did not get its CPU and offered less than that: these points are of less load\n";
    }
    if points.iter().any(|point| point.load_shares_cores) {
        text += "* the load had no core of its own: compare these with each other only; they fail nothing\n";
    }
    text
}

#[cfg(test)]
pub(super) use self::tests::point as sample_point;

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::curves) fn point(steering: &'static str, offered: Option<f64>, good: f64, p99_us: f64) -> CurvePoint {
        CurvePoint {
            name: "http_rmw",
            steering,
            cores: 1,
            load_shares_cores: false,
            part_of_top: offered.map(|offered| offered / 1_000.0),
            offered_per_second: offered,
            arrived_per_second: offered,
            arrivals_short: false,
            requests_per_second: good,
            refused_per_second: 0.0,
            unanswered: 0,
            cut: 0,
            unsent: 0,
            other_statuses: 0,
            refusals: 0,
            p50_us: Some(100.0),
            p99_us: Some(p99_us),
            p999_us: Some(p99_us * 2.0),
            closed_per_second: None,
        }
    }

    fn curve(past: f64) -> Vec<CurvePoint> {
        let loads = [(None, 1_000.0), (Some(500.0), 500.0), (Some(1_000.0), 980.0), (Some(2_000.0), past)];
        loads.map(|(offered, good)| point("off", offered, good, 300.0)).to_vec()
    }

    #[test]
    fn a_curve_that_keeps_nine_tenths_past_its_top_bends() {
        let kept = CurveVerdict::of(&curve(900.0)).unwrap();
        assert_eq!((kept.top_per_second, kept.kept_share, kept.holds), (1_000.0, 0.9, true));
        let broken = CurveVerdict::of(&curve(800.0)).unwrap();
        assert!(!broken.holds && broken.least_past_top_per_second == 800.0);
        let mut wrong = curve(980.0);
        wrong[3].other_statuses = 1;
        let wrong = CurveVerdict::of(&wrong).unwrap();
        assert!(!wrong.holds && !wrong.only_503);
    }

    #[test]
    fn the_top_is_what_either_loop_got_and_parts_are_of_it() {
        let mut curve = curve(900.0);
        // The open loops alone would have kept more of their own best.
        curve[0].requests_per_second = 1_250.0;
        set_parts_of_top(&mut curve);
        let parts: Vec<Option<f64>> = curve.iter().map(|point| point.part_of_top).collect();
        assert_eq!(parts, [None, Some(0.4), Some(0.8), Some(1.6)]);
        let verdict = CurveVerdict::of(&curve).unwrap();
        assert_eq!((verdict.top_per_second, verdict.kept_share, verdict.holds), (1_250.0, 0.72, false));
        curve[2].requests_per_second = 1_500.0;
        set_parts_of_top(&mut curve);
        assert_eq!((curve[3].part_of_top, CurveVerdict::of(&curve).unwrap().top_per_second), (Some(1.333), 1_500.0));
        set_parts_of_top(&mut []);
    }

    #[test]
    fn what_went_without_a_good_answer_is_called_what_it_was() {
        let told = |name, refusals, unanswered| {
            let mut curve = curve(980.0);
            curve.iter_mut().for_each(|point| point.name = name);
            curve[3].unanswered = unanswered;
            let round = CurvePoint { refusals, unanswered: 0, ..curve[3].clone() };
            curve[3].add_errors(&round);
            curves_table(&[], &[CurveVerdict::of(&curve).unwrap()])
        };
        assert!(told("udp_rmw", 0, 7).contains("; no 503s; 7 datagrams lost\n"));
        assert!(told("udp_rmw", 3, 7).contains("; refusals are 503s; 7 datagrams lost\n"));
        assert!(told("http_rmw", 3, 0).contains("; refusals are 503s; 0 unanswered, 0 of them cut\n"));
        assert!(told("http_rmw", 0, 0).contains("; no 503s; 0 unanswered, 0 of them cut\n"));
    }

    #[test]
    fn over_http_every_request_has_an_answer_and_datagrams_may_be_lost() {
        let found = |name, unanswered, cut| {
            let mut curve = curve(980.0);
            curve.iter_mut().for_each(|point| point.name = name);
            let round = CurvePoint { unanswered, cut, ..curve[3].clone() };
            curve[3].add_errors(&round);
            CurveVerdict::of(&curve).unwrap()
        };
        for (unanswered, cut) in [(1, 0), (1, 1)] {
            let http = found("http_rmw", unanswered, cut);
            assert!(!http.only_503 && !http.holds && (http.unanswered, http.cut) == (unanswered, cut), "{http:?}");
            assert!(curves_table(&[], &[http]).contains(&format!("OTHER ERRORS THAN 503; 1 unanswered, {cut} of them cut")));
        }
        let udp = found("udp_rmw", 7, 0);
        assert!(udp.only_503 && udp.holds && udp.unanswered == 7, "{udp:?}");
        assert!(udp.to_json().contains(r#""unanswered":7,"cut":0,"#));
    }

    #[test]
    fn a_point_that_was_offered_less_than_asked_for_is_marked_and_judged_by_what_arrived() {
        let mut short = curve(700.0);
        assert!(!CurveVerdict::of(&short).unwrap().holds);
        (short[3].arrived_per_second, short[3].arrivals_short) = (Some(700.0), true);
        assert_eq!(CurveVerdict::of(&short), None, "it was never loaded past its top");
        let text = curves_table(&short, &[]);
        assert!(text.contains(" 2000! ") && text.contains("\n! the generator did not get its CPU"), "{text}");
        assert!(short[3].progress().contains("DID NOT GET ITS CPU") && !short[2].progress().contains("CPU"));
        short[3].p99_us = None;
        assert!(curves_table(&short, &[]).contains("          -      600.0") && short[3].to_json().contains(r#""p99_us":null"#));
    }

    #[test]
    fn a_slower_machine_is_no_broken_curve() {
        let mut slower = curve(700.0);
        slower[3].closed_per_second = Some(750.0);
        let slower = CurveVerdict::of(&slower).unwrap();
        assert!(slower.holds && (slower.least_past_top_per_second - 933.3).abs() < 0.1, "{slower:?}");
        let mut faster = curve(1_000.0);
        faster[3].closed_per_second = Some(1_200.0);
        assert!(!CurveVerdict::of(&faster).unwrap().holds);
        // And what was past the top of the slow machine is not past that of the fast one.
        let mut faster = curve(1_300.0);
        faster[2] = point("off", Some(1_100.0), 1_100.0, 300.0);
        faster[2..].iter_mut().for_each(|point| point.closed_per_second = Some(1_300.0));
        let faster = CurveVerdict::of(&faster).unwrap();
        assert!(faster.holds && faster.kept_share == 1.0, "{faster:?}");
    }

    #[test]
    fn a_curve_that_never_passed_its_top_is_not_judged() {
        assert_eq!(CurveVerdict::of(&curve(900.0)[..3]), None);
        assert_eq!(CurveVerdict::of(&[]), None);
    }

    #[test]
    fn points_and_verdicts_are_printed() {
        let points = curve(800.0);
        let verdict = CurveVerdict::of(&points).unwrap();
        let text = curves_table(&points, std::slice::from_ref(&verdict));
        assert_eq!(text.lines().count(), 8, "{text}");
        assert!(!text.contains('!') && text.contains("cut"), "{text}");
        assert!(text.contains("closed") && text.contains("BREAKS: 80% of the top, 1000/s") && !text.contains('*'), "{text}");
        assert!(points[1].to_json().starts_with(
            r#"{"name":"http_rmw","steering":"off","cores":1,"load_shares_cores":false,"part_of_top":0.5,"offered_per_second":500.0,"#
        ));
        assert!(verdict.to_json().starts_with(r#"{"name":"http_rmw_verdict","steering":"off","cores":1,"#));
    }
}
