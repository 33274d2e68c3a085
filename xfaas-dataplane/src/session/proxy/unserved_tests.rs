//! Calls that were held somewhere, and whose function's place has another function when they go on.

use super::testing::{TABLE_HASH, call, install, proxy};
use super::*;
use crate::sys::clock::monotonic_ns;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::HOOK_APP;

fn outcome(finished: Option<Finished>) -> Outcome {
    finished.expect("it is over at once").outcome
}

fn session() -> SessionId {
    SessionId::new(b"s").unwrap()
}

#[track_caller]
fn assert_gone(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Failed { code: ErrorCode::NoFunction, .. }), "{outcome:?}");
}

#[test]
fn a_call_does_not_run_what_another_app_or_another_name_has_put_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut proxy = proxy(directory.path());
    for (name, app) in [("f", 1), ("g", 0), ("g", 1)] {
        install(&mut proxy, name, app, 10);
        assert_gone(&outcome(proxy.submit(call(&session(), b"", StateAt::Here), monotonic_ns())));
        assert!(proxy.state().region(app).is_some_and(|region| region.find(&session(), TABLE_HASH).is_none()), "nothing was written");
    }
    assert_eq!((proxy.stats().namespaces, proxy.stats().forks), (0, 0));
    install(&mut proxy, "f", 0, 10);
    let mut finished = proxy.submit(call(&session(), b"", StateAt::Here), monotonic_ns());
    while finished.is_none() {
        finished = proxy.run_next(monotonic_ns());
    }
    assert_eq!(outcome(finished), Outcome::Replied, "a new version of its own is another matter");
}

#[test]
fn a_call_that_waited_for_a_worker_does_not_either() {
    let directory = tempfile::tempdir().unwrap();
    let mut proxy = proxy(directory.path());
    install(&mut proxy, "f", 0, 1);
    assert!(proxy.submit(call(&session(), b"spin", StateAt::Here), monotonic_ns()).is_none(), "it runs for more than a slice");
    assert!(proxy.submit(call(&session(), b"", StateAt::Here), monotonic_ns()).is_none(), "it waits");
    install(&mut proxy, "f", 1, 1);
    let first = loop {
        if let Some(finished) = proxy.run_next(monotonic_ns()) {
            break finished;
        }
    };
    assert_eq!(first.outcome, Outcome::Replied, "what ran goes on");
    assert!(!proxy.has_runnable());
    let mut finished = Vec::new();
    proxy.sweep(monotonic_ns(), &mut finished);
    let [waited] = &finished[..] else { panic!("one call waited") };
    assert_gone(&waited.outcome);
    assert!(!proxy.is_busy() && proxy.state().region(0).is_some_and(|region| region.find(&session(), TABLE_HASH).is_none()));
}

#[test]
fn a_hooks_call_is_known_by_its_app_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut proxy = proxy(directory.path());
    let submit = |proxy: &mut Proxy| {
        let mut call = call(&session(), b"", StateAt::Here);
        call.app |= HOOK_APP;
        outcome(proxy.submit(call, monotonic_ns()))
    };
    let outcome = submit(&mut proxy);
    assert!(matches!(outcome, Outcome::Failed { code: ErrorCode::Overloaded, .. }), "this one has no hook: {outcome:?}");
    install(&mut proxy, "f", 1, 10);
    assert_gone(&submit(&mut proxy));
}
