//! Every model passes, and notices what it is there to notice: with a fence or a second look left out, some order shows it.

use std::time::Instant;

use xfaas_state_models::{MODELS, Model, Mutation};

/// The word of the header that rises before freed records, nodes and cells are used again.
const RECLAIM: usize = 80;

fn check_all(is_snapshot: bool) {
    for model in MODELS.iter().filter(|model| model.name.contains("snapshot") == is_snapshot) {
        let begun = Instant::now();
        let runs = model.check(None);
        println!("{}: {runs} orders, {:.1} s", model.name, begun.elapsed().as_secs_f64());
        assert!(runs > 100, "{}: {runs} orders are too few to say anything", model.name);
    }
}

#[test]
fn readers_never_see_what_they_must_not() {
    check_all(false);
}

#[test]
fn snapshots_never_mix_two_moments() {
    check_all(true);
}

/// The model must fail with `mutation`, and by what its reader saw.
#[track_caller]
fn notices(name: &str, mutation: Mutation) {
    let model = Model::named(name);
    let failed = std::thread::spawn(move || model.check(Some(mutation))).join();
    let panic = failed.expect_err(&format!("{name}: {mutation:?} goes unnoticed"));
    let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(message.contains("seen "), "{name}: {mutation:?} ends with {message:?}");
}

#[test]
fn a_missing_second_look_at_the_version_is_noticed() {
    notices("a short value overwritten twice", Mutation::NoSecondLookAtVersion);
    notices("a block overwritten until it is used again", Mutation::NoSecondLookAtVersion);
}

#[test]
fn a_missing_second_look_at_the_reclaim_word_is_noticed() {
    let name = "a deleted key's cell and block used for the same key of another session";
    notices(name, Mutation::NoSecondLookAtHeader(RECLAIM));
    let name = "a removed session's record, cell and block used for another";
    notices(name, Mutation::NoSecondLookAtHeader(RECLAIM));
}

#[test]
fn a_missing_second_look_at_the_sequence_is_noticed() {
    notices("two keys in one transaction, a snapshot", Mutation::NoSecondLookAtSequence);
    notices("two writes one after the other, a snapshot with one key twice", Mutation::NoSecondLookAtSequence);
}

#[test]
fn a_missing_fence_of_the_reader_is_noticed() {
    notices("a short value overwritten twice", Mutation::NoAcquireFence);
    notices("a block overwritten until it is used again", Mutation::NoAcquireFence);
    notices("two keys in one transaction, read one after the other", Mutation::NoAcquireFence);
    notices("two keys in one transaction, a snapshot", Mutation::NoAcquireFence);
}

#[test]
fn a_missing_fence_of_the_owner_is_noticed() {
    notices("a short value overwritten twice", Mutation::NoReleaseFence);
    notices("a block overwritten until it is used again", Mutation::NoReleaseFence);
    let name = "a deleted key's cell and block used for the same key of another session";
    notices(name, Mutation::NoReleaseFence);
}

#[test]
fn a_relaxed_publication_is_noticed() {
    notices("a short value overwritten twice", Mutation::RelaxedPublish);
    notices("two keys in one transaction, read one after the other", Mutation::RelaxedPublish);
}

#[test]
fn a_mark_that_readers_do_not_look_at_is_noticed() {
    notices("two keys in one transaction, read one after the other", Mutation::NoMark);
}
