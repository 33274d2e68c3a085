//! Allocations of a warm request, and of a Fork, which are wasmtime's own. The program brings the allocator that counts.

use super::cases::cases;
use super::table::{Row, Unit};
use crate::servers::XfaasFiles;
use crate::state::{Case, CaseError};

/// The only case that is not warm: what wasmtime allocates to make an instance.
const COLD: &str = "guest/fork";
const BATCHES: u32 = 200;
const WARM_UP_BATCHES: u32 = 100;

/// Allocations and bytes that a piece of work asked for on the calling thread.
pub type Measure = fn(&mut dyn FnMut()) -> (u64, u64);

/// Rows of every case whose name is wanted. Errors: a warm case allocates, whatever the table says.
pub fn count_allocations(files: &XfaasFiles, measure: Measure, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Row>, CaseError> {
    let mut rows = Vec::new();
    for mut case in cases(files, &[])? {
        let name = format!("allocations/{}", case.name());
        if !is_wanted(&name) {
            continue;
        }
        let operations = f64::from(BATCHES) * f64::from(case.operations());
        case.begin()?;
        run(&mut *case, WARM_UP_BATCHES)?;
        let mut result = Ok(());
        let (allocations, bytes) = measure(&mut || result = run(&mut *case, BATCHES));
        result?;
        case.end();
        if case.name() == COLD {
            rows.push(Row::new(name.clone(), Unit::Allocations, allocations as f64 / operations));
            rows.push(Row::new(name, Unit::AllocatedBytes, bytes as f64 / operations));
        } else if allocations > 0 {
            let what = format!("{} allocated {allocations} times, {bytes} bytes, in {operations} warm operations", case.name());
            return Err(CaseError::Answer(what));
        } else {
            rows.push(Row::new(name, Unit::Allocations, 0.0));
        }
    }
    Ok(rows)
}

fn run(case: &mut dyn Case, batches: u32) -> Result<(), CaseError> {
    (0..batches).try_for_each(|_| case.batch())
}
