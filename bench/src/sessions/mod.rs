//! What sessions cost: to start, at rest, and through kills. Everything is measured on a real node that is started for it, but for the phases
//! of a Fork, which are measured without one.

mod cold;
mod copies;
mod density;
mod image;
mod kills;
mod probe;
mod report;
mod starts;

pub use self::cold::{measure_cold, start_for_cold};
pub use self::copies::{CopyGrowth, measure_copies, measure_copy_growth, start_for_copies};
pub use self::density::{Density, measure_density};
pub use self::image::{ImageGrowth, measure_image, measure_workers};
pub use self::kills::{KillFigures, measure_kills};
pub(crate) use self::probe::Metrics;
pub use self::probe::Resident;
pub use self::report::{SessionRow, sessions_table};
pub use self::starts::{Quantiles, StartFigures, StartPhases, measure_starts, start_for_starts};

use crate::load::{FetchError, Interrupt};
use crate::servers::{ServerError, XfaasFiles};

#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("a request")]
    Fetch(#[from] FetchError),
    #[error("{request} was answered with {status} and {body:?}")]
    Answer { request: &'static str, status: u16, body: String },
    #[error("/metrics has no {name}")]
    Metric { name: &'static str },
    #[error("{found} sessions are there, and {written} were written")]
    Missing { found: u64, written: u64 },
    #[error("read {path}")]
    Process {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} has no {key}")]
    ProcessKey { path: String, key: &'static str },
    #[error("the RPC port: {operation}")]
    Rpc {
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the RPC port answered with a frame that is not understood")]
    Frame,
    #[error("a thread of the load panicked")]
    Panicked,
    #[error("interrupted")]
    Interrupted,
}

/// What all parts need.
#[derive(Clone, Copy)]
pub struct SessionsBench<'a> {
    pub xfaas: &'a XfaasFiles,
    pub server_cpu: u16,
    /// Of the second shard, where there are two.
    pub second_cpu: u16,
    pub interrupt: &'a Interrupt,
}

impl SessionsBench<'_> {
    fn check_interrupt(&self) -> Result<(), SessionsError> {
        if self.interrupt.is_set() { Err(SessionsError::Interrupted) } else { Ok(()) }
    }
}

/// One whole request. Its host's name is nobody's: the node looks at none.
fn request(function: &str, session: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST /f/{function} HTTP/1.1\r\nhost: node\r\nx-session-id: {session}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
