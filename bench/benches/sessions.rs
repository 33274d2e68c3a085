//! What `bench sessions` and `bench bursts` measure on a node, small. Under `cargo test` each runs once, so that they cannot rot; their figures
//! come from `cargo xtask bench sessions` and `bursts`.

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;
use xfaas_bench::bursts::{BurstBench, measure_bursts, start_for_bursts};
use xfaas_bench::load::Interrupt;
use xfaas_bench::sessions::{
    SessionsBench, measure_cold, measure_copies, measure_density, measure_image, measure_kills, measure_starts, start_for_cold,
    start_for_copies, start_for_starts,
};
use xfaas_bench::settings::built_beside;
use xfaas_dataplane::sys::affinity::allowed_cpus;

const SAMPLES: usize = 10;
const BURST_REQUESTS: u32 = 20;

fn sessions(criterion: &mut Criterion) {
    let (xfaas, interrupt) = (built_beside(), Interrupt::default());
    let cpus = allowed_cpus();
    let bench = SessionsBench { xfaas: &xfaas, server_cpu: cpus[0], second_cpu: *cpus.last().expect("it runs"), interrupt: &interrupt };
    let mut group = criterion.benchmark_group("sessions");
    group.sample_size(SAMPLES);
    group.bench_function("starts/10", |bencher| {
        bencher.iter(|| {
            // Another one each time: sessions must be new to it.
            let (place, server) = start_for_starts(&bench).expect("a node with counters starts");
            let figures = measure_starts(&bench, &place, &server, 10).expect("each request is answered as it should be");
            assert!(figures.iter().all(|figures| figures.quantiles.p99_us >= figures.quantiles.p50_us));
        });
    });
    group.bench_function("copies/10", |bencher| {
        bencher.iter(|| {
            let (place, server) = start_for_copies(&bench).expect("a node with two shards starts");
            let figures = measure_copies(&bench, &place, &server, 10).expect("each request makes a secondary container");
            assert!(figures.quantiles.p99_us >= figures.quantiles.p50_us);
        });
    });
    group.bench_function("cold/1mib", |bencher| {
        bencher.iter(|| {
            let (place, server) = start_for_cold(&bench).expect("a node with large sessions starts");
            let figures = measure_cold(&bench, &place, &server, 1).expect("each session falls asleep and comes back whole");
            assert!(figures.quantiles.p99_us >= figures.quantiles.p50_us);
        });
    });
    group.bench_function("at_rest/2000", |bencher| {
        bencher.iter(|| {
            let density = measure_density(&bench, 2_000).expect("2,000 sessions are written");
            assert!(density.sessions == 2_000 && density.region_bytes >= 2_000 * 100, "{density:?}");
        });
    });
    group.bench_function("image_64mib/4", |bencher| {
        bencher.iter(|| {
            let growth = measure_image(&bench, 4).expect("four workers are forked");
            assert!(growth.forks == 4 && growth.proportional_bytes < f64::from(8_u32 << 20), "a fork copied its image: {growth:?}");
        });
    });
    group.bench_function("kills/2", |bencher| {
        bencher.iter(|| {
            let figures = measure_kills(&bench, 2).expect("a node comes back after a kill");
            assert!(figures.runs == 2 && figures.lost == 0, "{figures:?}");
        });
    });
    group.finish();
}

fn bursts(criterion: &mut Criterion) {
    let (xfaas, interrupt) = (built_beside(), Interrupt::default());
    let work = Duration::from_micros(200);
    let cpus = allowed_cpus();
    let (server_cpu, second_cpu) = (cpus[0], *cpus.last().expect("it runs"));
    let bench = BurstBench { xfaas: &xfaas, server_cpu, second_cpu, requests: BURST_REQUESTS, work, rounds: 1, interrupt: &interrupt };
    let mut group = criterion.benchmark_group("bursts");
    group.sample_size(SAMPLES);
    group.bench_function(format!("requests/{BURST_REQUESTS}"), |bencher| {
        bencher.iter(|| {
            let nodes = start_for_bursts(&bench).expect("nodes with slow counters start");
            let rows = measure_bursts(&bench, &nodes).expect("each request is answered, and counted where it must be");
            assert_eq!(rows.len(), 12);
        });
    });
    group.finish();
}

criterion_group!(benches, sessions, bursts);
criterion_main!(benches);
