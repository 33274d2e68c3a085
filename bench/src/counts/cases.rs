//! What is counted under callgrind, and the marks around it. Runs in a process of its own, which `instructions.rs` starts.

use super::guest::guest_cases;
use super::session::session_cases;
use super::wire::wire_cases;
use crate::servers::XfaasFiles;
use crate::state::{Case, CaseError, local_cases};
use std::hint::black_box;

/// Batches before those that are counted: caches and decoders know the request then.
const WARM_UP_BATCHES: u32 = 100;
/// Batches of cases with many operations each.
const BATCHES_MIN: u32 = 4;

type Group = (&'static [&'static str], fn(&XfaasFiles) -> Result<Vec<Box<dyn Case>>, CaseError>);

/// How the names of a group's cases begin, and what makes them.
const GROUPS: [Group; 4] = [
    (&["decode/", "encode/"], |_| Ok(wire_cases())),
    (&["hint/", "session/", "lock/"], |_| session_cases()),
    (&["state/"], |_| local_cases()),
    (&["guest/", "proxy/", "path/"], guest_cases),
];

/// How the names of all cases begin.
pub fn case_beginnings() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|(begins, _)| *begins).copied()
}

/// Whether a name is asked for: it begins with one of `only`, or that is empty.
fn is_wanted(name: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|begin| name.starts_with(begin.as_str()))
}

fn of_group((begins, make): Group, files: &XfaasFiles, only: &[String]) -> Result<Vec<Box<dyn Case>>, CaseError> {
    // `only` may be longer than what the group's names begin with.
    let may_be_in = |begin: &&str| is_wanted(begin, only) || only.iter().any(|wanted| wanted.starts_with(begin));
    if !begins.iter().any(may_be_in) {
        return Ok(Vec::new());
    }
    let mut cases = make(files)?;
    cases.retain(|case| is_wanted(case.name(), only));
    Ok(cases)
}

/// The cases asked for in the table's order. Cost: may compile the guests.
pub(super) fn cases(files: &XfaasFiles, only: &[String]) -> Result<Vec<Box<dyn Case>>, CaseError> {
    let mut cases = Vec::new();
    for group in GROUPS {
        cases.extend(of_group(group, files, only)?);
    }
    Ok(cases)
}

/// Callgrind begins to count when this is called: see `callgrind::MARKS`. Never inlined, and unlike `counted_until_here`, so that both stay.
#[inline(never)]
fn counted_from_here() {
    black_box("from");
}

/// Callgrind writes down what it counted when this is called.
#[inline(never)]
fn counted_until_here() {
    black_box("until here");
}

/// Runs each case that is asked for: warm-up, then about `batches` operations between the marks. Tells its name and how many before.
/// Errors: the first case that fails.
pub fn run_counted(files: &XfaasFiles, only: &[String], batches: u32, mut tell: impl FnMut(&'static str, u64)) -> Result<(), CaseError> {
    for mut case in cases(files, only)? {
        let rounds = batches.div_ceil(case.operations()).max(BATCHES_MIN);
        tell(case.name(), u64::from(rounds) * u64::from(case.operations()));
        case.begin()?;
        for _ in 0..WARM_UP_BATCHES.min(rounds) {
            case.batch()?;
        }
        counted_from_here();
        for _ in 0..rounds {
            case.batch()?;
        }
        counted_until_here();
        case.end();
    }
    Ok(())
}
