//! The soak's figures as text with a curve, and as JSON lines. Formats only.

use super::{FRAGMENTATION_MAX, SoakPoint, SoakReport};
use serde_json::json;
use std::fmt::Write as _;

/// Points of the curve that are printed; each is the worst of those it stands for.
const POINTS_MAX: usize = 240;
/// Points in a line of the curve, one line a phase.
const LINE_POINTS: usize = 48;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// `points` in at most `count` groups of neighbours, of each the one with the highest fragmentation.
fn worst_of_groups(points: &[SoakPoint], count: usize) -> Vec<&SoakPoint> {
    let group = points.len().div_ceil(count).max(1);
    let worst = |group: &'_ [SoakPoint]| group.iter().map(|point| point.fragmentation).fold(0.0, f64::max);
    points.chunks(group).filter_map(|group| group.iter().find(|point| point.fragmentation >= worst(group))).collect()
}

/// One object a line: the points, then the summary, which has `"name":"soak"`.
pub fn json_lines(report: &SoakReport) -> String {
    let mut text = String::new();
    for point in worst_of_groups(&report.points, POINTS_MAX) {
        let line = json!({
            "name": "soak_point", "operations": point.operations, "turnovers": rounded(point.turnovers), "phase": point.phase,
            "fragmentation": rounded(point.fragmentation), "overhead": rounded(point.overhead), "sessions": point.sessions,
            "keys": point.keys, "warm_up": point.is_warm_up,
        });
        writeln!(text, "{line}").expect("a String takes all");
    }
    let last = report.points.last();
    let line = json!({
        "name": "soak", "region_mib": report.region_mib, "seconds": rounded(report.elapsed.as_secs_f64()),
        "operations": last.map(|point| point.operations), "turnovers": last.map(|point| rounded(point.turnovers)),
        "fragmentation_worst": rounded(report.worst()), "fragmentation_mean": rounded(report.mean()),
        "fragmentation_final": last.map(|point| rounded(point.fragmentation)), "fragmentation_max": FRAGMENTATION_MAX,
        "refused": report.refused, "write_p50_ns": report.write_ns.value_at_quantile(0.5),
        "write_p99_ns": report.write_ns.value_at_quantile(0.99), "write_p999_ns": report.write_ns.value_at_quantile(0.999),
        "passed": report.has_passed(),
    });
    writeln!(text, "{line}").expect("a String takes all");
    text
}

/// The curve, a line a phase, and the summary under it.
pub fn curve(report: &SoakReport) -> String {
    let mut text = format!("fragmentation of {} MiB at 70% fill; a full bar is {:.0}%\n", report.region_mib, FRAGMENTATION_MAX * 100.0);
    for phase in report.points.chunk_by(|one, next| one.phase == next.phase) {
        let (first, last) = (&phase[0], &phase[phase.len() - 1]);
        let worst = phase.iter().map(|point| point.fragmentation).fold(0.0, f64::max);
        let bars: String = worst_of_groups(phase, LINE_POINTS).into_iter().map(|point| bar(point.fragmentation)).collect();
        let note = if first.is_warm_up { "  (warm-up)" } else { "" };
        let (turnovers, name) = (last.turnovers, first.phase);
        writeln!(text, "{turnovers:>7.1} turnovers  {name:<8} {bars:<48} worst {:>4.1}%{note}", worst * 100.0).expect("a String takes all");
    }
    let percent = |value: f64| format!("{:.1}%", value * 100.0);
    if let Some(last) = report.points.last() {
        let (seconds, operations) = (report.elapsed.as_secs_f64(), last.operations);
        writeln!(text, "{operations} operations in {seconds:.1} s replaced the content {:.0} times", last.turnovers).expect("a String");
        let (worst, mean, end) = (percent(report.worst()), percent(report.mean()), percent(last.fragmentation));
        writeln!(text, "worst {worst}, mean {mean}, final {end}, {} writes refused", report.refused).expect("a String takes all");
    }
    let quantile = |quantile| report.write_ns.value_at_quantile(quantile);
    let (median, most, rare) = (quantile(0.5), quantile(0.99), quantile(0.999));
    writeln!(text, "a write of up to 1 KiB: p50 {median} ns, p99 {most} ns, p99.9 {rare} ns").expect("a String takes all");
    writeln!(text, "{}", if report.has_passed() { "passed" } else { "FAILED" }).expect("a String takes all");
    text
}

fn bar(fragmentation: f64) -> char {
    let step = (fragmentation / FRAGMENTATION_MAX * BARS.len() as f64) as usize;
    BARS[step.min(BARS.len() - 1)]
}
