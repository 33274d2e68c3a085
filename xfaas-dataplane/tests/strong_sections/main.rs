//! Strong sections, CONTRACT.md section 3, end to end and at the very moment: a gate holds a call where the test wants it. Case by case:
//!
//! | Case | Test |
//! |---|---|
//! | strong read of a missing key: -1, and the section is open | ends: a_missing_key_is_locked_like_any_other |
//! | strong read of a key this call holds: re-enters, one write ends it | ends: a_section_entered_twice_ends_with_one_write |
//! | strong write without a strong read: lock, write, release | ends: a_strong_write_alone_waits_for_an_open_section |
//! | mode 0 on a key that someone holds: neither waits nor releases | ends: weak_access_to_a_held_key_neither_waits_nor_releases |
//! | deadlock: -4 at once, locks already held stay held | deadlocks: all; worker/tests/contract.rs |
//! | waiting does not count towards the deadline | ends: a_wait_longer_than_the_deadline_is_no_fault |
//! | waiting longer than lock_wait_ms: 503 lock_wait | ends: a_wait_in_vain_ends_with_lock_wait_and_leaves_the_queue |
//! | return without a write, trap, deadline, non-zero code | ends: however_a_holder_ends_the_next_one_gets_the_lock_and_the_old_value |
//! | client reset while holding, waiting or queued | gone_clients: all |
//! | client that closed its sending half only | gone_clients: a_client_that_only_stops_sending_gets_its_reply |
//! | `--atomic`: none stay, however it ends | ends (above); gone_clients: a_cancelled_atomic_call_leaves_nothing |
//! | `--fresh`, `--idempotent` | ends: fresh_workers_and_repeated_datagrams_keep_to_the_lock |
//! | function swapped or taken away while its calls hold, wait and queue | ends: a_swap_or_removal_disturbs_no_section |
//! | order of waiting | fairness: all; state/lock_tests.rs |
//! | nothing lost: strong increments of many clients, shards, protocols | guest_calls.rs, sessions.rs |
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod deadlocks;
mod ends;
mod fairness;
mod gate;
mod gone_clients;
#[allow(dead_code, unused_imports, reason = "each test file uses its own part of the harness")]
#[path = "../harness/mod.rs"]
mod harness;
