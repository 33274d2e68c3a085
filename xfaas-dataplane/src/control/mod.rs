//! The control thread: deployments, the admin API, metrics, and the doctor.
//! Touches shards at one door only, the trait `Shards`; never on a request's path. Called by `main.rs` and `cli`.

mod addresses;
mod admin;
mod aliases;
mod api;
mod catalog;
mod checkpoints;
mod client;
mod deploy;
mod doctor;
mod metrics;
mod moving;
mod rebalance;
mod regions;
mod shards;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod trace;

pub use self::addresses::{Addresses, TOKEN_TTL_S_MAX};
pub use self::admin::{Control, ControlError, ControlOptions, spawn};
pub use self::api::{
    AliasInfo, AliasName, AliasesReply, DeployFlags, FunctionInfo, FunctionSource, FunctionsReply, Histogram, MetricSample, Problem,
    SessionInfo, SessionsReply, StatsReply, TokenReply, TokenRequest, UndeployReply,
};
pub use self::catalog::{CatalogError, ManifestError, check_manifest, check_together};
pub use self::checkpoints::{CheckpointStatus, CheckpointsError, start_checkpoints};
pub use self::client::{AdminClient, ClientError};
pub use self::deploy::{ConfiguredFunction, DeployError, Deployer, StartReport};
pub use self::doctor::{Check, DoctorOptions, Verdict, all_good, examine};
pub use self::metrics::{DROPS_TOTAL, REQUEST_DURATION_SECONDS, REQUESTS_TOTAL, SHARD_BUSY_SECONDS_TOTAL, STEERING_VERDICTS_TOTAL};
pub use self::moving::{HotSession, MOVE_OUTCOMES, MoveError, MoveReply, MoveRequest};
pub use self::rebalance::Rebalancer;
pub use self::regions::RegionDoor;
pub use self::shards::{
    CounterSample, HistogramSample, MetricKind, Running, SESSIONS_LIMIT_MAX, SessionsQuery, Shards, ShardsError, SteeringReport,
    SteeringStats,
};
pub use self::store::{Store, StoreError, private_directory};
pub use self::trace::{KernelWork, ShardTrace, TRACE_SECONDS_MAX, TraceReply, TracedRequest};

/// An error and its causes in one line, as operators read it. Errors of other crates often hold their cause's text: each is told once.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Fault {
        #[error("cannot write")]
        Own(#[source] Box<Fault>),
        #[error("Generic S3 error: {0}")]
        Wraps(#[source] Box<Fault>),
        #[error("refused")]
        Last,
    }

    #[test]
    fn each_cause_is_told_once() {
        let wrapped = Fault::Wraps(Box::new(Fault::Wraps(Box::new(Fault::Last))));
        let text = describe(&Fault::Own(Box::new(wrapped)));
        assert_eq!(text, "cannot write: Generic S3 error: Generic S3 error: refused");
        assert_eq!(describe(&Fault::Own(Box::new(Fault::Last))), "cannot write: refused");
    }
}
