//! How long the compiler will take over a module, told before it begins: its time grows with the square of a function's blocks, faster with loops, and
//! a module of some kilobytes could keep it busy for hours. Called by `shape` with bytes that nobody has validated yet.

use super::program::LoadError;
use super::shape::not_wasm;
use wasmparser::{FunctionBody, Operator};
use xfaas_common::limits::{COMPILE_STEPS_MAX, FUNCTION_BODY_BYTES_MAX, FUNCTION_LOCALS_MAX};

/// A loop costs as many blocks.
const LOOP_BLOCKS: u64 = 32;
/// Steps for each block and local that is carried from block to block.
const CARRIED_STEPS: u64 = 64;

/// What a byte of a function takes at most however it is put together, as measured; nothing is said against that.
const BYTE_STEPS: u64 = 800;

/// What of a function makes compiling it slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Where control may go to, or may part.
    blocks: u64,
    loops: u64,
    /// Locals that are read in another block than the one before it, in the order of the code, that wrote them.
    carried: u64,
}

impl Cost {
    /// About 5 ns each, as measured with functions that were made to be slow; ordinary ones take less.
    fn steps(self) -> u64 {
        let Cost { blocks, loops, carried } = self;
        let weight = blocks.saturating_add(loops.saturating_mul(LOOP_BLOCKS + carried));
        weight.saturating_mul(weight).saturating_add(CARRIED_STEPS.saturating_mul(blocks).saturating_mul(carried))
    }
}

/// Adds up the functions of one module, in their order.
#[derive(Default)]
pub(super) struct Effort {
    functions: u32,
    steps: u64,
    /// Counts blocks of all functions: each has a number of its own.
    block: u32,
    /// Position: index of a local. The block that wrote it last.
    written: Vec<u32>,
    /// The function, counted from 1, in which it was found to be carried last.
    carried: Vec<u32>,
    targets: Vec<u32>,
}

impl Effort {
    /// Errors: the function is too long, or would make all together take too long.
    pub(super) fn add(&mut self, body: &FunctionBody<'_>) -> Result<(), LoadError> {
        let (function, bytes) = (self.functions, body.range().len());
        if bytes > FUNCTION_BODY_BYTES_MAX {
            return Err(LoadError::FunctionTooLong { function, bytes, bytes_max: FUNCTION_BODY_BYTES_MAX });
        }
        let cost = self.cost(body)?;
        self.steps = self.steps.saturating_add(cost.steps().saturating_sub(BYTE_STEPS * bytes as u64));
        if self.steps > COMPILE_STEPS_MAX {
            let Cost { blocks, loops, carried } = cost;
            let (steps, steps_max) = (self.steps, COMPILE_STEPS_MAX);
            return Err(LoadError::TooSlowToCompile { steps, steps_max, function, blocks, loops, carried });
        }
        Ok(())
    }

    fn cost(&mut self, body: &FunctionBody<'_>) -> Result<Cost, LoadError> {
        self.functions += 1;
        self.block += 1;
        let mut cost = Cost { blocks: 1, ..Cost::default() };
        for operator in body.get_operators_reader().map_err(not_wasm)? {
            let begun = match operator.map_err(not_wasm)? {
                Operator::Loop { .. } => {
                    cost.loops += 1;
                    1
                }
                Operator::Block { .. }
                | Operator::If { .. }
                | Operator::Else
                | Operator::TryTable { .. }
                | Operator::End
                | Operator::BrIf { .. } => 1,
                Operator::BrTable { targets } => {
                    self.targets.clear();
                    for target in targets.targets() {
                        self.targets.push(target.map_err(not_wasm)?);
                    }
                    self.targets.sort_unstable();
                    self.targets.dedup();
                    1 + self.targets.len() as u32
                }
                Operator::LocalGet { local_index } => {
                    cost.carried += u64::from(self.is_carried_now(local_index)?);
                    0
                }
                Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => {
                    let local = self.local(local_index)?;
                    self.written[local] = self.block;
                    0
                }
                _ => 0,
            };
            cost.blocks += u64::from(begun);
            self.block += begun;
        }
        Ok(cost)
    }

    /// True when this read shows it, and none before did.
    fn is_carried_now(&mut self, local_index: u32) -> Result<bool, LoadError> {
        let local = self.local(local_index)?;
        if self.written[local] == self.block || self.carried[local] == self.functions {
            return Ok(false);
        }
        self.carried[local] = self.functions;
        Ok(true)
    }

    fn local(&mut self, local_index: u32) -> Result<usize, LoadError> {
        let local = local_index as usize;
        if local >= FUNCTION_LOCALS_MAX {
            return Err(LoadError::NotWasm { reason: format!("function {} uses local {local_index}", self.functions - 1) });
        }
        if local >= self.written.len() {
            self.written.resize(local + 1, 0);
            self.carried.resize(local + 1, 0);
        }
        Ok(local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmparser::{Parser, Payload};

    fn costs(functions: &str) -> Result<(Vec<Cost>, Effort), LoadError> {
        let wasm = wat::parse_str(format!("(module {functions})")).unwrap();
        let (mut costs, mut effort) = (Vec::new(), Effort::default());
        for payload in Parser::new(0).parse_all(&wasm) {
            if let Payload::CodeSectionEntry(body) = payload.unwrap() {
                effort.add(&body)?;
                costs.push(Effort::default().cost(&body)?);
            }
        }
        Ok((costs, effort))
    }

    fn cost(body: &str) -> Cost {
        costs(&format!("(func {body})")).unwrap().0[0]
    }

    #[test]
    fn blocks_loops_and_carried_locals_are_counted() {
        assert_eq!(cost(""), Cost { blocks: 2, loops: 0, carried: 0 });
        assert_eq!(cost("(loop (br_if 0 (i32.const 0)))"), Cost { blocks: 5, loops: 1, carried: 0 });
        let table = "(block (block (br_table 0 1 1 0 1 2 (i32.const 0))))";
        assert_eq!(cost(table), Cost { blocks: 6 + 1 + 2, loops: 0, carried: 0 });
        let at_once = "(local i32 i32) (local.set 0 (i32.const 1)) (drop (local.get 0)) (drop (local.get 0))";
        assert_eq!(cost(at_once).carried, 0);
        let later = "(local i32 i32) (local.set 0 (i32.const 1)) (block (drop (local.get 0)) (drop (local.get 0)) (drop (local.get 1)))";
        assert_eq!(cost(later).carried, 2);
    }

    #[test]
    fn a_function_knows_nothing_of_the_one_before() {
        let written = "(func (local i32) (local.set 0 (i32.const 1)))";
        let read = "(func (param i32) (drop (local.get 0)))";
        assert_eq!(costs(&format!("{written} {read}")).unwrap().0[1].carried, 1);
    }

    #[test]
    fn many_ordinary_functions_are_no_effort() {
        let ordinary = "(func (param i32) (loop (br_if 0 (i32.load (local.get 0)))) (if (i32.load (local.get 0)) (then (return))))";
        let (_, effort) = costs(&format!("(memory 1) {}", ordinary.repeat(1_000))).unwrap();
        assert_eq!((effort.functions, effort.steps), (1_000, 0));
        assert!(costs(&format!("(func {})", "(loop (br_if 0 (i32.const 0)))".repeat(100))).unwrap().1.steps > 0);
    }

    #[test]
    fn what_would_take_long_is_refused_with_what_was_found() {
        let nested = |depth: usize| format!("(func {} {})", "(block ".repeat(depth), ")".repeat(depth));
        let refused = |functions: &str| costs(functions).map(drop).unwrap_err().to_string();
        costs(&nested(20_000)).unwrap();
        let text = refused(&nested(40_000));
        assert!(text.contains("function 0") && text.contains("80002 blocks") && text.contains("4294967296"), "{text}");
        let text = refused(&format!("(func) {}", nested(20_000).repeat(3)));
        assert!(text.contains("function 3") && text.contains("40002 blocks"), "{text}");
        let text = refused(&format!("(func {})", "(loop (br_if 0 (i32.const 0)))".repeat(2_000)));
        assert!(text.contains("2000 loops"), "{text}");
        let reads: String = (0..300).map(|local| format!("(local.set {local} (local.get {local}))")).collect();
        let text = refused(&format!("(func (local {}) {})", "i32 ".repeat(300), format!("(loop {reads})").repeat(256)));
        assert!(text.contains("256 loops") && text.contains("300 locals"), "{text}");
        let long = format!("(func {})", "(drop (i32.const 0))".repeat((1 << 20) / 3 + 1));
        assert!(refused(&long).contains("at most 1048576"), "{}", refused(&long));
    }
}
