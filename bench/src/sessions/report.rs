//! The figures as JSON lines and as text beside the paper's. Formats only.

use super::{Density, ImageGrowth, KillFigures, StartFigures};
use crate::fork::ForkReport;
use crate::sync::SyncFigures;
use serde::Serialize;
use std::fmt::Write as _;

/// The paper's Table 2, in ms.
const PAPER: [(&str, f64); 4] = [("Fork", 1.98), ("CopySession", 263.0), ("ColdSession", 268.0), ("a container", 262.0)];

/// One figure. The fields' names and order are the JSON object's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum SessionRow {
    Start { name: &'static str, p50_us: f64, p99_us: f64 },
    ForkPhases { name: &'static str, instance_us: f64, first_call_us: f64, end_us: f64 },
    RequestPhases { name: String, network_us: f64, queue_us: f64, instance_us: f64, state_and_reply_us: f64 },
    Idle { name: &'static str, bytes: f64, sessions: u64, region_bytes: u64, resident_bytes: u64, anonymous_bytes: u64 },
    Image { name: &'static str, bytes: f64, pss_bytes: f64, anonymous_bytes: f64, forks: u64 },
    Sync { name: &'static str, requests_per_second: f64, ratio_to_fsync: f64, ratio_to_redis_always: f64 },
    Kills { name: &'static str, runs: u64, acknowledged: u64, lost: u64, runs_without_memory: u64 },
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl SessionRow {
    /// Two rows: the whole, and its phases.
    pub fn fork(report: &ForkReport) -> [SessionRow; 2] {
        let ForkReport { p50_us, p99_us, instance_us, first_call_us, end_us } = *report;
        [
            SessionRow::Start { name: "fork", p50_us: rounded(p50_us), p99_us: rounded(p99_us) },
            SessionRow::ForkPhases {
                name: "fork_phases",
                instance_us: rounded(instance_us),
                first_call_us: rounded(first_call_us),
                end_us: rounded(end_us),
            },
        ]
    }

    /// Two rows: the whole, and its phases.
    pub fn start(figures: &StartFigures) -> [SessionRow; 2] {
        let (quantiles, phases) = (figures.quantiles, figures.phases);
        [
            SessionRow::Start { name: figures.name, p50_us: rounded(quantiles.p50_us), p99_us: rounded(quantiles.p99_us) },
            SessionRow::RequestPhases {
                name: format!("{}_phases", figures.name),
                network_us: rounded(phases.network_us),
                queue_us: rounded(phases.queue_us),
                instance_us: rounded(phases.instance_us),
                state_and_reply_us: rounded(phases.state_and_reply_us),
            },
        ]
    }

    pub fn idle(density: &Density) -> SessionRow {
        let Density { sessions, region_bytes, resident_bytes, anonymous_bytes } = *density;
        let bytes = rounded(density.beside_state());
        SessionRow::Idle { name: "idle_session", bytes, sessions, region_bytes, resident_bytes, anonymous_bytes }
    }

    pub fn image(growth: &ImageGrowth) -> SessionRow {
        let ImageGrowth { forks, resident_bytes, proportional_bytes, anonymous_bytes } = *growth;
        SessionRow::Image {
            name: "fork_64mib_rss_bytes",
            bytes: resident_bytes.round(),
            pss_bytes: proportional_bytes.round(),
            anonymous_bytes: anonymous_bytes.round(),
            forks,
        }
    }

    pub fn sync(figures: &SyncFigures) -> SessionRow {
        SessionRow::Sync {
            name: "sync_rmw",
            requests_per_second: rounded(figures.requests_per_second),
            ratio_to_fsync: rounded(figures.ratio_to_fsync),
            ratio_to_redis_always: rounded(figures.ratio_to_redis_always),
        }
    }

    pub fn kills(figures: &KillFigures) -> SessionRow {
        let KillFigures { runs, without_memory, acknowledged, lost } = *figures;
        SessionRow::Kills { name: "kills", runs, acknowledged, lost, runs_without_memory: without_memory }
    }

    /// The row as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }

    fn line(&self) -> String {
        match self {
            SessionRow::Start { name, p50_us, p99_us } => format!("{name:<22} p50 {p50_us:>9.2} us   p99 {p99_us:>9.2} us"),
            SessionRow::ForkPhases { instance_us, first_call_us, end_us, .. } => {
                format!("{:<22} instance {instance_us:.2} + first call {first_call_us:.2} + its end {end_us:.2} us (medians)", "")
            }
            SessionRow::RequestPhases { network_us, queue_us, instance_us, state_and_reply_us, .. } => format!(
                "{:<22} network {network_us:.2} + queue {queue_us:.2} + instance {instance_us:.2} + state, guest and reply {state_and_reply_us:.2} us (means)",
                ""
            ),
            SessionRow::Idle { name, bytes, sessions, region_bytes, resident_bytes, anonymous_bytes } => format!(
                "{name:<22} {bytes:.0} bytes beside its 100 of state: {sessions} sessions take {} of region; resident memory grew by {}, {} of it not the region",
                mib(*region_bytes),
                mib(*resident_bytes),
                mib(*anonymous_bytes)
            ),
            SessionRow::Image { name, bytes, pss_bytes, anonymous_bytes, forks } => format!(
                "{name:<22} {:.0} KiB a fork, {:.0} KiB with shared pages counted once, {:.0} KiB its own ({forks} forks of an image of 64 MiB)",
                bytes / 1_024.0,
                pss_bytes / 1_024.0,
                anonymous_bytes / 1_024.0
            ),
            SessionRow::Sync { name, requests_per_second, ratio_to_fsync, ratio_to_redis_always } => format!(
                "{name:<22} {requests_per_second:.0} RMW/s, {ratio_to_fsync:.2} of the disk's bare rate, {ratio_to_redis_always:.2} of redis appendfsync always"
            ),
            SessionRow::Kills { name, runs, acknowledged, lost, runs_without_memory } => format!(
                "{name:<22} {runs} x kill -9 ({runs_without_memory} with the shared memory gone too): {acknowledged} increments acknowledged, {lost} lost"
            ),
        }
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1_u32 << 20))
}

/// All rows as text, with the paper's figures under them.
pub fn sessions_table(rows: &[SessionRow]) -> String {
    let mut text = String::new();
    for row in rows {
        writeln!(text, "{}", row.line()).expect("a String takes all");
    }
    let paper: Vec<String> = PAPER.iter().map(|(name, ms)| format!("{name} {ms} ms")).collect();
    writeln!(text, "{:<22} {}", "the paper's Table 2", paper.join(", ")).expect("a String takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_rows_have_their_names_and_fields() {
        let fork = SessionRow::fork(&ForkReport { p50_us: 9.0, p99_us: 20.0, instance_us: 5.0, first_call_us: 2.0, end_us: 2.0 });
        assert_eq!(fork[0].to_json(), r#"{"name":"fork","p50_us":9.0,"p99_us":20.0}"#);
        let kills = KillFigures { runs: 200, without_memory: 100, acknowledged: 70_000, lost: 0 };
        assert!(SessionRow::kills(&kills).to_json().starts_with(r#"{"name":"kills","runs":200,"acknowledged":70000,"lost":0,"#));
        let density = Density { sessions: 10, region_bytes: 3_000, resident_bytes: 9_000, anonymous_bytes: 1_000 };
        assert!(SessionRow::idle(&density).to_json().starts_with(r#"{"name":"idle_session","bytes":300.0,"#));
        let text = sessions_table(&[fork[0].clone(), SessionRow::kills(&kills)]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("0 lost") && text.contains("Fork 1.98 ms"), "{text}");
    }
}
