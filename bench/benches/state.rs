//! State access under criterion, the cases of `bench state`. `cargo bench -p xfaas-bench --bench state`; with `-- --test` each runs once.
//! Round trips go over loopback here, from the last CPU to the first.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Instant;
use xfaas_bench::load::Interrupt;
use xfaas_bench::network::Network;
use xfaas_bench::servers::{print_error, start_xfaas_in};
use xfaas_bench::settings::built_beside;
use xfaas_bench::state::{Case, CaseError, echo_case, guest_cases, memory_cases, rpc_cases};
use xfaas_dataplane::sys::affinity::{allowed_cpus, pin_to};

/// Criterion counts operations, a case does batches of them: the time of whole batches is scaled.
fn run(criterion: &mut Criterion, cases: Result<Vec<Box<dyn Case>>, CaseError>) {
    let expect = |result: Result<(), CaseError>| {
        result.unwrap_or_else(|error| {
            print_error(&error);
            panic!("the case failed, see above");
        });
    };
    let cases = cases.unwrap_or_else(|error| {
        print_error(&error);
        panic!("the cases cannot be made, see above");
    });
    for mut case in cases {
        let (group, function) = case.name().split_once('/').unwrap_or(("tcp", case.name()));
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(1));
        group.bench_function(function, |bencher| {
            bencher.iter_custom(|operations| {
                let batches = operations.div_ceil(u64::from(case.operations()));
                expect(case.begin());
                let started = Instant::now();
                (0..batches).for_each(|_| expect(case.batch()));
                let elapsed = started.elapsed();
                case.end();
                elapsed.mul_f64(operations as f64 / (batches * u64::from(case.operations())) as f64)
            });
        });
        group.finish();
    }
}

fn state(criterion: &mut Criterion) {
    let cpus = allowed_cpus();
    let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
    let (network, files, interrupt) = (Network::loopback(), built_beside(), Interrupt::default());
    // Processes and threads have the CPUs of the thread that starts them: before pinning.
    let xfaas = start_xfaas_in(&network, &files, first, &interrupt);
    let guest = files.guest("state-loop").map_err(CaseError::from).and_then(|module| guest_cases(&module));
    pin_to(first).expect("the first CPU is allowed");
    run(criterion, memory_cases(last));
    run(criterion, guest);
    pin_to(last).expect("the last CPU is allowed");
    run(criterion, xfaas.map_err(CaseError::from).and_then(|xfaas| rpc_cases(&network, xfaas)));
    run(criterion, echo_case(&network, first).map(|case| vec![case]));
}

criterion_group!(benches, state);
criterion_main!(benches);
