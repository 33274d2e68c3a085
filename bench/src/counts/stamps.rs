//! What the stamps around a guest's slices cost: the proxy's instructions with them, and in a build without them.

use super::callgrind::CallgrindError;
use super::instructions::count_instructions;
use super::table::{Row, Unit};
use std::path::Path;

/// `counted`, built with the dataplane's feature `unstamped`; beside this program.
pub const UNSTAMPED_PROGRAM: &str = "counted-unstamped";
/// The cases that have them, and how their rows begin here.
const CASES: &str = "proxy/";
const ROWS: &str = "stamps/";

/// Rows of instructions and of their part of a call through the proxy.
pub fn count_stamps(stamped: &[Row], program: &Path, guests: &Path, batches: u32, folder: &Path) -> Result<Vec<Row>, CallgrindError> {
    let unstamped = count_instructions(program, guests, &[CASES.to_owned()], batches, folder)?;
    Ok(difference(stamped, &unstamped))
}

fn difference(stamped: &[Row], unstamped: &[Row]) -> Vec<Row> {
    let is_counted = |row: &&Row| row.unit == Unit::Instructions && row.name.starts_with(CASES);
    let of = |with: &Row| {
        let without = unstamped.iter().find(|row| row.name == with.name && row.unit == with.unit)?;
        let (name, cost) = (with.name.replace(CASES, ROWS), with.count - without.count);
        Some([Row::new(name.clone(), Unit::Instructions, cost), Row::new(name, Unit::Percent, 100.0 * cost / without.count)])
    };
    stamped.iter().filter(is_counted).filter_map(of).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_the_difference_and_its_part() {
        let row = |name, unit, count| Row::new(name, unit, count);
        let stamped = [
            row("proxy/http", Unit::Instructions, 1_020.0),
            row("proxy/http", Unit::DataMisses, 7.0),
            row("guest/echo", Unit::Instructions, 9.0),
            row("proxy/other", Unit::Instructions, 9.0),
        ];
        let unstamped = [row("proxy/http", Unit::DataMisses, 6.0), row("proxy/http", Unit::Instructions, 1_000.0)];
        let expected = [row("stamps/http", Unit::Instructions, 20.0), row("stamps/http", Unit::Percent, 2.0)];
        assert_eq!(difference(&stamped, &unstamped), expected);
    }
}
