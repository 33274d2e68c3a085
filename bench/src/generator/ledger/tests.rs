//! The book against times that are made up.

use super::super::arrivals::Arrivals;
use super::super::spec::Transport;
use super::super::tally::FunctionTally;
use super::*;
use std::time::Duration;

const MS: u64 = 1_000_000;

struct Run {
    spec: LoadSpec,
    truth: Truth,
    live: LiveThread,
}

/// 10 ms of warm-up and 100 ms measured, one session.
fn run(arrivals: Arrivals, function: &str) -> Run {
    let mut spec = LoadSpec::new(([127, 0, 0, 1], 1).into(), Transport::Datagram, "p".to_owned());
    spec.functions.push(function.parse().unwrap());
    (spec.arrivals, spec.sessions) = (arrivals, 1);
    (spec.warm_up, spec.measured, spec.answer_timeout) = (Duration::from_millis(10), Duration::from_millis(100), Duration::from_millis(50));
    Run { spec, truth: Truth::new(1), live: LiveThread::default() }
}

impl Run {
    fn ledger(&self, places: usize) -> Ledger<'_> {
        Ledger::new(&self.spec, 0, places, (&self.truth, &self.live), 0)
    }
}

fn answer(ledger: &mut Ledger<'_>, place: usize, outcome: Outcome, now_ns: u64) {
    ledger.answered(place, outcome, now_ns, || "bytes".to_owned());
}

#[test]
fn a_closed_loop_measures_from_when_a_request_left() {
    let run = run(Arrivals::Closed, "x");
    let mut ledger = run.ledger(1);
    for (sent_ms, answered_ms) in [(5, 9), (9, 12), (12, 14), (14, 17), (109, 111)] {
        assert_eq!(ledger.due_in_ns(sent_ms * MS), Some(0));
        let place = ledger.next(sent_ms * MS).unwrap();
        assert_eq!((ledger.next(sent_ms * MS), ledger.due_in_ns(sent_ms * MS)), (None, None), "one place, one request");
        answer(&mut ledger, place, Outcome::Good, answered_ms * MS);
    }
    assert_eq!(ledger.next(110 * MS), None);
    assert!(ledger.is_over(111 * MS));
    let tally = ledger.finish();
    assert_eq!((tally.sent, tally.functions[0].good, tally.good_in_time, tally.measured_ns), (5, 5, 3, 100 * MS));
    assert_eq!(tally.functions[0].latency_ns.len(), 4); // those that were under way in the measured time
}

#[test]
fn a_request_of_a_closed_loop_that_hangs_from_the_warm_up_on_is_in_the_times() {
    // Answered in the measured time, after it, and never; one place is as ever.
    for (answered_ms, waited_ms) in [(Some(80), 75), (Some(150), 145), (None, 156)] {
        let run = run(Arrivals::Closed, "x");
        let mut ledger = run.ledger(2);
        let hangs = ledger.next(5 * MS).unwrap();
        for ms in 6..110 {
            let place = ledger.next(ms * MS).unwrap();
            answer(&mut ledger, place, Outcome::Good, (ms + 1) * MS);
        }
        if let Some(ms) = answered_ms {
            answer(&mut ledger, hangs, Outcome::Good, ms * MS);
        }
        assert!(ledger.is_over(161 * MS));
        let latency = ledger.finish().functions[0].latency_ns.clone();
        // Those that left at 9 to 109, and the one that hangs: none of the warm-up alone.
        assert_eq!(latency.len(), 101 + 1, "{answered_ms:?}");
        assert!(latency.max().abs_diff(waited_ms * MS) < MS / 2 && latency.value_at_quantile(0.98) < 2 * MS, "{}", latency.max());
    }
    // Nothing of a run that is told to stop in its warm-up was measured.
    let run = run(Arrivals::Closed, "x");
    let mut ledger = run.ledger(1);
    let place = ledger.next(5 * MS).unwrap();
    ledger.stop(6 * MS);
    answer(&mut ledger, place, Outcome::Good, 20 * MS);
    assert!(ledger.finish().functions[0].latency_ns.is_empty());
}

#[test]
fn a_closed_loop_begins_when_the_run_does() {
    let run = run(Arrivals::Closed, "x");
    let mut ledger = Ledger::new(&run.spec, 0, 1, (&run.truth, &run.live), 3 * MS);
    assert_eq!((ledger.next(2 * MS), ledger.due_in_ns(2 * MS)), (None, Some(MS)));
    assert!(ledger.next(3 * MS).is_some());
}

#[test]
fn a_read_that_runs_ahead_of_all_updates_is_wrong() {
    let mut run = run(Arrivals::Closed, "counter-read");
    run.spec.functions.push("counter-rmw-linear:1".parse().unwrap());
    run.truth.set_base(0, 10);
    let mut ledger = run.ledger(8);
    let next = |ledger: &mut Ledger<'_>, check| loop {
        let place = ledger.next(0).unwrap();
        if ledger.check_of(place) == check {
            return place;
        }
        // Refused updates did not run, and count for nothing.
        answer(ledger, place, Outcome::Refused(503), 1);
    };
    let [acknowledged, lost, _under_way] = [(); 3].map(|()| next(&mut ledger, Check::Counter));
    answer(&mut ledger, acknowledged, Outcome::Number(11), 1);
    ledger.cut(lost);
    for (number, wrong) in [(10, 1), (11, 1), (13, 1), (14, 2), (1_000_013, 3)] {
        let place = next(&mut ledger, Check::Read);
        answer(&mut ledger, place, Outcome::Number(number), 1);
        assert_eq!(ledger.tally.functions[0].wrong, wrong, "{number}");
    }
    assert!(ledger.tally.first_fault.as_ref().unwrap().contains("fell behind"));

    // Nobody writes: it is what it was.
    let reading = self::run(Arrivals::Closed, "counter-read");
    let mut ledger = reading.ledger(1);
    for (number, wrong) in [(0, 0), (1, 1)] {
        let place = ledger.next(0).unwrap();
        answer(&mut ledger, place, Outcome::Number(number), 1);
        assert_eq!(ledger.tally.functions[0].wrong, wrong, "{number}");
    }
    assert!(ledger.tally.first_fault.as_ref().unwrap().contains("ran ahead"));
}

#[test]
fn an_open_loop_measures_from_when_a_request_was_due_and_counts_what_never_left() {
    let run = run(Arrivals::Fixed { per_second: 100.0 }, "x"); // one every 10 ms
    let mut ledger = run.ledger(1);
    let first = ledger.next(0).unwrap();
    assert_eq!(ledger.next(0), None);
    // The server hangs for 60 ms: requests due at 10..=60 wait for the only place.
    answer(&mut ledger, first, Outcome::Good, 60 * MS);
    let second = ledger.next(60 * MS).unwrap();
    assert_eq!(ledger.due_in_ns(60 * MS), None); // no place
    answer(&mut ledger, second, Outcome::Good, 61 * MS);
    assert_eq!(ledger.due_in_ns(61 * MS), Some(0));
    let tally = {
        assert!(ledger.is_over(200 * MS));
        ledger.finish()
    };
    let latency = &tally.functions[0].latency_ns;
    // Due in 10..110: one was answered 51 ms after it was due, 9 never left and had waited 10 to 90 ms.
    assert_eq!((tally.functions[0].good, tally.unsent, latency.len()), (2, 9, 10));
    assert!(latency.max().abs_diff(90 * MS) < MS && latency.value_at_quantile(0.55).abs_diff(51 * MS) < MS, "{}", latency.max());
    assert!(tally.send_delay_ns.max().abs_diff(90 * MS) < MS);
}

#[test]
fn counters_and_reads_are_held_against_the_truth() {
    let counting = run(Arrivals::Closed, "counter-rmw-linear");
    let mut ledger = counting.ledger(2);
    for (number, wrong) in [(1, 0), (1, 1), (2, 1)] {
        let place = ledger.next(0).unwrap();
        answer(&mut ledger, place, Outcome::Number(number), 1);
        assert_eq!(ledger.tally.functions[0].wrong, wrong);
    }
    assert!(ledger.tally.first_fault.as_ref().unwrap().contains("twice"));

    let mut reading = run(Arrivals::Closed, "counter-read");
    reading.spec.functions.push("counter-rmw-linear:1".parse().unwrap());
    let mut ledger = reading.ledger(1);
    reading.truth.acknowledge(0, 7);
    let mut wrong = 0;
    (0..8).for_each(|_| reading.truth.ask(0)); // of another thread
    for number in [7, 6, 8, 0] {
        let place = loop {
            let place = ledger.next(0).unwrap();
            if ledger.check_of(place) == Check::Read {
                break place;
            }
            answer(&mut ledger, place, Outcome::Refused(503), 1);
        };
        answer(&mut ledger, place, Outcome::Number(number), 1);
        wrong += u64::from(number < 7);
        assert_eq!(ledger.tally.functions[0].wrong, wrong, "{number}");
    }
}

#[test]
fn statuses_are_counted_and_only_what_may_have_run_is_unsure() {
    let run = run(Arrivals::Closed, "counter-rmw-linear");
    let mut ledger = run.ledger(1);
    for outcome in [Outcome::Refused(503), Outcome::Failed(504), Outcome::Failed(500), Outcome::Wrong("nonsense")] {
        let place = ledger.next(11 * MS).unwrap();
        answer(&mut ledger, place, outcome, 12 * MS);
    }
    let place = ledger.next(11 * MS).unwrap();
    ledger.given_up(place, 12 * MS);
    let tally = ledger.finish();
    let function = &tally.functions[0];
    assert_eq!((function.refused, function.failed, function.wrong, function.unsure), (1, 2, 1, 1));
    assert_eq!(tally.statuses.into_iter().collect::<Vec<_>>(), [(500, 1), (503, 1), (504, 1)]);
    let mut verdict = super::super::truth::CounterVerdict::default();
    run.truth.judge(&mut verdict, 0, "s", Some(4));
    assert_eq!((verdict.acknowledged, verdict.unsure, verdict.doubled_updates), (0, 4, 0));
}

#[test]
fn what_is_not_answered_is_given_up_and_a_silent_server_is_noticed() {
    let run = run(Arrivals::Closed, "x");
    let mut ledger = run.ledger(2);
    let first = ledger.next(0).unwrap();
    ledger.next(MS).unwrap();
    ledger.give_up_late(51 * MS);
    assert!(!ledger.is_busy(first) && ledger.under_way() == 1);
    ledger.next(51 * MS).unwrap();
    assert_eq!(ledger.silence_ns(60 * MS), 60 * MS); // giving up is no answer
    assert!(!ledger.is_over(109 * MS) && !ledger.is_over(160 * MS));
    assert!(ledger.is_over(161 * MS));
    assert_eq!(ledger.finish().functions[0].unsure, 3);
}

#[test]
fn requests_that_are_given_up_are_timed_with_what_they_waited_and_cut_ones_are_not() {
    let run = run(Arrivals::Fixed { per_second: 100.0 }, "x"); // one every 10 ms
    let mut ledger = run.ledger(8);
    // Due in the warm-up, then at 10, 20, 30 and 40; all leave at 40.
    let places: Vec<usize> = (0..5).map(|_| ledger.next(40 * MS).unwrap()).collect();
    ledger.cut(places[1]);
    assert_eq!((ledger.tally.cut, ledger.tally.functions[0].unsure, ledger.tally.functions[0].latency_ns.len()), (1, 1, 0));
    answer(&mut ledger, places[2], Outcome::Good, 41 * MS);
    ledger.give_up_late(90 * MS); // not yet
    assert_eq!(ledger.under_way(), 3);
    ledger.give_up_late(91 * MS);
    assert_eq!((ledger.under_way(), ledger.tally.functions[0].unsure), (0, 4));
    let late = ledger.next(91 * MS).unwrap(); // due at 50
    ledger.abandon(100 * MS);
    assert!(!ledger.is_busy(late));
    let latency = &ledger.tally.functions[0].latency_ns;
    // 21 was answered; 61, 51 and 50 are what the others had waited, and the one of the warm-up and the cut one are missing.
    assert_eq!(latency.len(), 4);
    for (quantile, ms) in [(0.25, 21), (0.5, 50), (0.75, 51), (1.0, 61)] {
        assert!(latency.value_at_quantile(quantile).abs_diff(ms * MS) < MS / 2, "{quantile}: {}", latency.value_at_quantile(quantile));
    }
}

#[test]
fn a_short_wait_of_the_generators_own_hides_no_stall_of_the_servers() {
    let mut run = run(Arrivals::Closed, "x");
    run.spec.measured = Duration::from_secs(10);
    // The server stalls; in the turn in which the answer comes the thread itself was away for 5 ms, in pieces.
    for (latency_ms, is_timed) in [(2_000, true), (40, true), (39, false), (6, false)] {
        let mut ledger = run.ledger(1);
        let place = ledger.next(20 * MS).unwrap();
        let now_ns = (20 + latency_ms) * MS;
        ledger.was_off_cpu(now_ns - 6 * MS, 2 * MS);
        ledger.was_off_cpu(now_ns - 3 * MS, 3 * MS);
        answer(&mut ledger, place, Outcome::Good, now_ns);
        let FunctionTally { latency_ns, disturbed_ns, .. } = &ledger.tally.functions[0];
        assert_eq!((latency_ns.len(), disturbed_ns.len()), (u64::from(is_timed), u64::from(!is_timed)), "{latency_ms} ms");
        // What came before the last look is over.
        let place = ledger.next(now_ns).unwrap();
        ledger.has_looked();
        answer(&mut ledger, place, Outcome::Good, now_ns + MS);
        assert_eq!(ledger.tally.functions[0].latency_ns.len(), 1 + u64::from(is_timed));
    }
}

#[test]
fn a_request_that_may_have_left_only_after_a_stop_is_not_late_by_the_server() {
    let mut run = run(Arrivals::Closed, "x");
    run.spec.measured = Duration::from_secs(10);
    // It was taken up, the thread stood still for 500 ms, and the answer came 1 ms later. Or the kernel had it before.
    for was_seen in [false, true] {
        let mut ledger = run.ledger(1);
        let place = ledger.next(20 * MS).unwrap();
        if was_seen {
            ledger.was_seen();
        }
        ledger.was_off_cpu(20 * MS, 500 * MS);
        ledger.was_seen();
        ledger.has_looked();
        answer(&mut ledger, place, Outcome::Good, 521 * MS);
        let place = ledger.next(521 * MS).unwrap();
        answer(&mut ledger, place, Outcome::Good, 522 * MS);
        let FunctionTally { latency_ns, disturbed_ns, .. } = &ledger.tally.functions[0];
        assert_eq!((latency_ns.len(), disturbed_ns.len()), (1 + u64::from(was_seen), u64::from(!was_seen)));
    }
}

#[test]
fn arrivals_that_were_due_in_the_measured_time_are_counted_sent_or_not() {
    let run = run(Arrivals::Fixed { per_second: 1_000.0 }, "x");
    let mut ledger = run.ledger(30);
    while ledger.next(40 * MS).is_some() {} // 20 of them, due from 10 on, of the 30 that there is room for
    ledger.was_off_cpu(5 * MS, 15 * MS); // 10 ms of it in the measured time
    ledger.was_off_cpu(70 * MS, 30 * MS);
    assert!(ledger.is_over(300 * MS));
    let tally = ledger.finish();
    assert_eq!((tally.arriving_ns, tally.paused_ns), (100 * MS, 40 * MS));
    assert_eq!((tally.sent, tally.arrived), (30, 20 + tally.unsent));
    assert!(tally.arrived.abs_diff(100 - 45) <= 1, "{}", tally.arrived);
}

#[test]
fn time_in_which_the_generator_was_stopped_is_not_the_servers() {
    let run = run(Arrivals::Closed, "x");
    let mut ledger = run.ledger(1);
    let place = ledger.next(100 * MS).unwrap();
    ledger.was_stopped(5_000 * MS);
    assert_eq!(ledger.silence_ns(5_102 * MS), 2 * MS);
    assert!(!ledger.is_over(5_102 * MS) && ledger.is_busy(place));
    assert!(ledger.is_over(5_161 * MS));
}

#[test]
fn what_the_generator_missed_is_not_the_servers() {
    let mut run = run(Arrivals::Fixed { per_second: 1_000.0 }, "x"); // one every ms
    let mut tallies = [false, true].map(|counts_own_stalls| {
        run.spec.counts_own_stalls = counts_own_stalls;
        let mut ledger = run.ledger(64);
        let mut answered_ns = 0;
        for ms in (0..120).filter(|ms| !(51..80).contains(ms)) {
            if ms == 80 {
                ledger.was_off_cpu(50 * MS + 1, 29 * MS);
            }
            // What left a turn ago is answered.
            (0..64).filter(|place| ledger.is_busy(*place)).collect::<Vec<_>>().into_iter().for_each(|place| {
                answer(&mut ledger, place, Outcome::Good, ms * MS);
            });
            ledger.has_looked();
            answered_ns = ms * MS;
            while ledger.next(ms * MS).is_some() {}
        }
        assert!(ledger.is_over(answered_ns + MS));
        ledger.finish()
    });
    let [own, counted] = &mut tallies;
    assert_eq!((own.off_cpu, own.off_cpu_ns, own.off_cpu_ns_max), (1, 29 * MS, 29 * MS));
    assert_eq!([&own, &counted].map(|tally| tally.functions[0].disturbed_ns.len()), [1, 0]);
    assert!(own.functions[0].latency_ns.max() <= 2 * MS, "{}", own.functions[0].latency_ns.max());
    assert!(counted.functions[0].latency_ns.max() >= 29 * MS);
    assert_eq!((own.sent, counted.sent), (110 - 29, 110));
}

#[test]
fn a_run_that_is_told_to_stop_ends_with_what_it_has() {
    let run = run(Arrivals::Closed, "x");
    let mut ledger = run.ledger(1);
    let place = ledger.next(20 * MS).unwrap();
    ledger.stop(30 * MS);
    answer(&mut ledger, place, Outcome::Good, 31 * MS);
    assert_eq!(ledger.next(31 * MS), None);
    assert!(ledger.is_over(31 * MS));
    assert_eq!(ledger.finish().measured_ns, 20 * MS);
}

#[test]
fn a_run_ends_by_its_count() {
    let mut run = run(Arrivals::Fixed { per_second: 1_000.0 }, "x");
    run.spec.requests_max = 2;
    let mut ledger = run.ledger(4);
    let places = [ledger.next(50 * MS).unwrap(), ledger.next(50 * MS).unwrap()];
    assert_eq!(ledger.next(50 * MS), None);
    places.iter().for_each(|place| answer(&mut ledger, *place, Outcome::Good, 60 * MS));
    assert!(ledger.is_over(60 * MS));
    let tally = ledger.finish();
    assert_eq!((tally.sent, tally.unsent, tally.measured_ns), (2, 0, 50 * MS));
    assert_eq!((tally.arrived, tally.arriving_ns), (0, 0)); // both were of the warm-up
}
