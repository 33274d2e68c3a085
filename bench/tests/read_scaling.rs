//! The figures of reads on several cores, taken small: every case is there and did what it says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;
use xfaas_bench::read_scaling::{ScalingOptions, measure_read_scaling};
use xfaas_dataplane::sys::affinity::allowed_cpus;

/// At most two CPUs of this machine.
fn cpus() -> Vec<u16> {
    allowed_cpus().into_iter().take(2).collect()
}

#[test]
fn each_number_of_cores_reads_while_the_owner_writes() {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests");
    let cpus = cpus();
    let options = ScalingOptions { guests: &guests, cpus: &cpus, writes_per_s: 1_000, rounds: 2, round: Duration::from_millis(30) };
    let cases = measure_read_scaling(&options).unwrap();
    assert_eq!(cases.iter().map(|case| case.cores).collect::<Vec<_>>(), (1..=cpus.len()).collect::<Vec<_>>());
    for case in &cases {
        assert_eq!(case.name, format!("state/read_scaling/{}core", case.cores));
        assert!(case.reads_per_s > 0.0 && case.writes_per_s > 0.0 && case.p50_ns > 0.0 && case.p99_ns >= case.p50_ns, "{case:?}");
    }
}
