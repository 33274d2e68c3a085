//! The paper's evaluation, measured again on this machine: each figure is one function of a registry, and one report tells all of them with
//! pictures, tables, and the paper's own values beside ours.

mod axes;
mod clients;
mod ends;
mod figure;
mod html;
mod machine;
mod places;
mod plot;
mod report;
mod sizes;
mod starts;
mod units;
mod workers;

pub use self::figure::{Axis, BarChart, BarSeries, Chart, Comparison, Figure, Line, LineChart, Scale, Table};
pub use self::machine::{Fact, facts};
pub use self::places::{Access, Place, PlaceError};
pub use self::report::{Failure, PaperReport, ReportError};

use crate::bursts::BurstError;
use crate::guest::GuestError;
use crate::load::{FetchError, Interrupt, LoadError};
use crate::servers::{ServerError, XfaasFiles};
use crate::sessions::SessionsError;
use std::path::Path;
use xfaas_dataplane::sys::affinity::{AffinityError, pin_to};

#[derive(Debug, thiserror::Error)]
pub enum PaperError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Bursts(#[from] BurstError),
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("the load")]
    Load(#[from] LoadError),
    #[error("a request")]
    Fetch(#[from] FetchError),
    #[error("the measuring thread")]
    Pin(#[from] AffinityError),
    #[error("the measuring thread panicked")]
    Panicked,
    #[error("interrupted")]
    Interrupted,
}

/// What figures are measured with.
#[derive(Clone, Copy)]
pub struct PaperSetup<'a> {
    pub xfaas: &'a XfaasFiles,
    /// Folder of the servers that are installed for this, such as the object store's.
    pub packages: &'a Path,
    pub server_cpu: u16,
    pub load_cpu: u16,
    /// Of a server's second shard: the load's, if this machine has no third one.
    pub second_cpu: u16,
    /// Of each run that lasts a given time.
    pub seconds: f64,
    /// Of each case; medians count.
    pub rounds: u32,
    /// Requests of each case that is counted and not timed, at the least 10. Figures scale their other counts by it: 1,000 is a whole run.
    pub requests: u32,
    pub interrupt: &'a Interrupt,
}

impl PaperSetup<'_> {
    pub fn check_interrupt(&self) -> Result<(), PaperError> {
        if self.interrupt.is_set() { Err(PaperError::Interrupted) } else { Ok(()) }
    }

    /// Runs `work` on a thread of its own on the load's CPU. Start servers before: they could not leave that CPU.
    pub fn at_load<T: Send>(&self, work: impl FnOnce() -> Result<T, PaperError> + Send) -> Result<T, PaperError> {
        self.on_cpu(self.load_cpu, work)
    }

    /// The same on the servers' CPU, for processes that must be pinned from outside: what a thread starts stays on its CPU.
    pub fn at_servers<T: Send>(&self, work: impl FnOnce() -> Result<T, PaperError> + Send) -> Result<T, PaperError> {
        self.on_cpu(self.server_cpu, work)
    }

    fn on_cpu<T: Send>(&self, cpu: u16, work: impl FnOnce() -> Result<T, PaperError> + Send) -> Result<T, PaperError> {
        let run = || {
            pin_to(cpu)?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| PaperError::Panicked)?
    }
}

/// A figure that can be measured.
#[derive(Clone, Copy)]
pub struct Source {
    pub id: &'static str,
    /// In the list of `--help` and on stderr.
    pub what: &'static str,
    /// What must be installed for it, by the names that `xtask` knows.
    pub packages: &'static [&'static str],
    /// Minutes are fine; it tells its progress on stderr and ends with `Interrupted` soon after a signal.
    pub measure: fn(&PaperSetup<'_>) -> Result<Figure, PaperError>,
}

const OBJECT_STORE: &[&str] = &["seaweedfs"];

/// In the order of the report.
pub const SOURCES: &[Source] = &[
    Source { id: "fig1", what: "access to state by size", packages: OBJECT_STORE, measure: sizes::fig1 },
    Source { id: "fig2", what: "workers in one session", packages: &[], measure: workers::fig2 },
    Source { id: "fig5", what: "memory of one more isolation unit", packages: &[], measure: units::fig5 },
    Source { id: "fig7", what: "access latency by clients of one session; Fig. 8 too", packages: OBJECT_STORE, measure: clients::fig7 },
    Source { id: "fig9", what: "latency from end to end", packages: OBJECT_STORE, measure: ends::fig9 },
    Source { id: "fig10", what: "throughput at saturation", packages: OBJECT_STORE, measure: ends::fig10 },
    Source { id: "fig11", what: "a burst on one session", packages: &[], measure: workers::fig11 },
    Source { id: "table2", what: "starts with their phases", packages: &[], measure: starts::table2 },
];

/// The figure of that name. Fig. 8 is measured with Fig. 7.
pub fn source_of(id: &str) -> Option<&'static Source> {
    SOURCES.iter().find(|source| source.id == if id == "fig8" { "fig7" } else { id })
}

/// The command that measures all figures.
pub const EVALUATION: &str = "cargo xtask bench paper";
/// `PaperSetup::requests` of a whole run.
pub const REQUESTS_WHOLE: u32 = 1_000;

/// The command that measures one figure alone.
pub fn command_of(id: &str) -> String {
    format!("{EVALUATION} --only {id}")
}

/// How many of something to do: `whole` in a whole run, fewer in a smaller one, and at least `least`.
fn count_of(setup: &PaperSetup<'_>, whole: u32, least: u32) -> u32 {
    let part = u64::from(whole) * u64::from(setup.requests) / u64::from(REQUESTS_WHOLE);
    u32::try_from(part).unwrap_or(u32::MAX).clamp(least, whole.max(least))
}
