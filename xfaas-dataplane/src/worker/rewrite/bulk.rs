//! Bulk memory operations in pieces. One `memory.fill` runs without an epoch check for as long as its whole length takes, and nobody else on the core
//! runs meanwhile; so an operation longer than a piece goes to a function that loops over pieces, at whose back edge the epoch is checked:
//!
//! ```text
//! local.tee $length  local.get $length  i32.const PIECE  i32.le_u
//! if (param i32 i32 i32)  memory.fill  else  call $fill_in_pieces  end
//! ```
//! What cannot be longer than a piece stays as it is: an operation whose length is a small constant, as in a compiler's copies of values, and
//! `memory.init` of a short segment. So do operations on tables, which are small (`TABLE_ELEMENTS_MAX` of `engine`): wasmtime checks the epoch before
//! each. Called by `rewrite` alone, with a module that was checked and validated: it has one memory, of 32 bits and pages of 64 KiB.

use super::Result;
use std::collections::BTreeSet;
use wasm_encoder::{BlockType, Encode, Function, Instruction, InstructionSink, ValType};
use wasmparser::{DataKind, Operator, OperatorsReader, Parser, Payload};

/// Bytes of an operation that nobody interrupts: some 20 us of copying, ten times as many when each page is touched for the first time.
const PIECE_BYTES: u32 = 256 << 10;
/// Parameters and locals that a function can have.
const LOCALS_MAX: u32 = 50_000;
/// Parameters of each shim, which are the operands of what it stands in for.
pub(super) const PARAMETERS: [ValType; 3] = [ValType::I32; 3];
const DESTINATION: u32 = 0;
/// Where a copy comes from; the value of a fill.
const SOURCE: u32 = 1;
const LENGTH: u32 = 2;
/// A page of memory has 2 to the power of so many bytes.
const PAGE_BITS: i64 = 16;

/// An operation that may be longer than a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Fill,
    Copy,
    Init { segment: u32 },
}

impl Operation {
    /// `length`: the constant that was pushed right before the operator, if there was one.
    fn of(operator: &Operator<'_>, length: Option<u32>) -> Option<Operation> {
        if length.is_some_and(|length| length <= PIECE_BYTES) {
            return None;
        }
        match *operator {
            Operator::MemoryFill { .. } => Some(Operation::Fill),
            Operator::MemoryCopy { .. } => Some(Operation::Copy),
            Operator::MemoryInit { data_index, .. } => Some(Operation::Init { segment: data_index }),
            _ => None,
        }
    }

    fn push(self, code: &mut InstructionSink<'_>) {
        match self {
            Operation::Fill => code.memory_fill(0),
            Operation::Copy => code.memory_copy(0, 0),
            Operation::Init { segment } => code.memory_init(0, segment),
        };
    }
}

/// Operators of a function body, each with the operation that it is, if that may be longer than a piece.
pub(super) struct Operators<'a> {
    reader: OperatorsReader<'a>,
    constant: Option<u32>,
}

impl<'a> Operators<'a> {
    pub(super) fn new(reader: OperatorsReader<'a>) -> Operators<'a> {
        Operators { reader, constant: None }
    }

    pub(super) fn next(&mut self) -> Result<Option<(Operator<'a>, Option<Operation>)>> {
        if self.reader.eof() {
            return Ok(None);
        }
        let operator = self.reader.read()?;
        let operation = Operation::of(&operator, self.constant);
        // Whatever can be jumped to is an operator too, so the constant is on the stack whenever the next operator runs.
        self.constant = match operator {
            Operator::I32Const { value } => Some(value as u32),
            _ => None,
        };
        Ok(Some((operator, operation)))
    }
}

/// A shim, in the order of `Operation`s.
struct Shim {
    operation: Operation,
    /// Bytes of the segment that an `Operation::Init` reads.
    segment_bytes: u32,
}

/// The shims that a module needs.
pub(super) struct Shims {
    shims: Vec<Shim>,
}

impl Shims {
    /// Those that the module's code has a use for.
    pub(super) fn of(wasm: &[u8]) -> Result<Shims> {
        let mut found = BTreeSet::new();
        let mut segments = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::CodeSectionEntry(body) => {
                    let mut operators = Operators::new(body.get_operators_reader()?);
                    while let Some((_, operation)) = operators.next()? {
                        found.extend(operation);
                    }
                }
                Payload::DataSection(section) => {
                    for segment in section {
                        let segment = segment?;
                        // What is copied into memory at the start is empty from then on.
                        let is_passive = matches!(segment.kind, DataKind::Passive);
                        segments.push(if is_passive { segment.data.len() as u32 } else { 0 });
                    }
                }
                _ => {}
            }
        }
        let segment_bytes = |operation: Operation| match operation {
            Operation::Init { segment } => segments.get(segment as usize).copied().unwrap_or(0),
            Operation::Fill | Operation::Copy => u32::MAX,
        };
        let shims = found.into_iter().map(|operation| Shim { operation, segment_bytes: segment_bytes(operation) });
        Ok(Shims { shims: shims.filter(|shim| shim.segment_bytes > PIECE_BYTES).collect() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shims.is_empty()
    }

    pub(super) fn len(&self) -> u32 {
        self.shims.len() as u32
    }

    /// The index of the operation's shim among all.
    pub(super) fn find(&self, operation: Operation) -> Option<u32> {
        self.shims.binary_search_by_key(&operation, |shim| shim.operation).ok().map(|index| index as u32)
    }

    pub(super) fn bodies(&self) -> impl Iterator<Item = Function> {
        self.shims.iter().map(Shim::body)
    }
}

/// A function body of the guest that is written anew.
pub(super) struct Body {
    locals: Vec<(u32, ValType)>,
    /// The local that keeps a length, unless the function has all that it can have.
    scratch: Option<u32>,
    is_scratch_used: bool,
    code: Vec<u8>,
}

impl Body {
    pub(super) fn new(parameters: u32, locals: Vec<(u32, ValType)>) -> Body {
        let taken = locals.iter().fold(parameters, |sum, (count, _)| sum.saturating_add(*count));
        Body { locals, scratch: (taken < LOCALS_MAX).then_some(taken), is_scratch_used: false, code: Vec::new() }
    }

    pub(super) fn push(&mut self, instruction: &Instruction<'_>) {
        instruction.encode(&mut self.code);
    }

    /// An operation by itself if it is short, else a call of its `shim`, whose type is `ty`. The short one comes first: there wasmtime still sees
    /// a length that is constant after all.
    pub(super) fn push_operation(&mut self, operation: Operation, shim: u32, ty: u32) {
        let Some(scratch) = self.scratch else {
            self.push(&Instruction::Call(shim));
            return;
        };
        self.is_scratch_used = true;
        let mut code = InstructionSink::new(&mut self.code);
        code.local_tee(scratch).local_get(scratch).i32_const(PIECE_BYTES as i32).i32_le_u();
        code.if_(BlockType::FunctionType(ty));
        operation.push(&mut code);
        code.else_().call(shim).end();
    }

    pub(super) fn finish(mut self) -> Function {
        if self.is_scratch_used {
            self.locals.push((1, ValType::I32));
        }
        let mut function = Function::new(self.locals);
        function.raw(self.code);
        function
    }
}

impl Shim {
    /// Does what the operation does, in pieces. As there, nothing is written if any of it would be out of bounds.
    fn body(&self) -> Function {
        let operation = self.operation;
        let mut body = Function::new([]);
        let mut code = body.instructions();
        self.trap_if_out_of_bounds(&mut code);
        match operation {
            Operation::Fill => pieces_from_the_start(&mut code, operation, &[DESTINATION]),
            Operation::Copy => {
                // Ranges may overlap: what a piece writes over must have been read before.
                code.local_get(DESTINATION).local_get(SOURCE).i32_le_u().if_(BlockType::Empty);
                pieces_from_the_start(&mut code, operation, &[DESTINATION, SOURCE]);
                code.else_();
                pieces_from_the_end(&mut code, operation);
                code.end();
            }
            Operation::Init { .. } => pieces_from_the_start(&mut code, operation, &[DESTINATION, SOURCE]),
        }
        code.local_get(DESTINATION).local_get(SOURCE).local_get(LENGTH);
        operation.push(&mut code);
        code.end();
        body
    }

    /// The trap is the instruction's own, given all of the length: it checks before it writes.
    fn trap_if_out_of_bounds(&self, code: &mut InstructionSink<'_>) {
        push_is_outside_memory(code, DESTINATION);
        match self.operation {
            Operation::Fill => {}
            Operation::Copy => {
                push_is_outside_memory(code, SOURCE);
                code.i32_or();
            }
            Operation::Init { .. } => {
                push_end(code, SOURCE);
                code.i64_const(i64::from(self.segment_bytes)).i64_gt_u().i32_or();
            }
        }
        code.if_(BlockType::Empty).local_get(DESTINATION).local_get(SOURCE).local_get(LENGTH);
        self.operation.push(code);
        code.unreachable().end();
        if let Operation::Init { .. } = self.operation {
            // A segment that was dropped is empty, which only the instruction itself can tell: given no bytes, from the end of those asked for.
            code.local_get(DESTINATION).local_get(SOURCE).local_get(LENGTH).i32_add().i32_const(0);
            self.operation.push(code);
        }
    }
}

/// Pushes where a range ends, as an `i64`: it may be above 32 bits.
fn push_end(code: &mut InstructionSink<'_>, start: u32) {
    code.local_get(start).i64_extend_i32_u().local_get(LENGTH).i64_extend_i32_u().i64_add();
}

fn push_is_outside_memory(code: &mut InstructionSink<'_>, start: u32) {
    push_end(code, start);
    code.memory_size(0).i64_extend_i32_u().i64_const(PAGE_BITS).i64_shl().i64_gt_u();
}

/// Leaves at most a piece to be done. `starts`: the operands that are addresses.
fn pieces_from_the_start(code: &mut InstructionSink<'_>, operation: Operation, starts: &[u32]) {
    loop_over_pieces(code, |code| {
        code.local_get(DESTINATION).local_get(SOURCE).i32_const(PIECE_BYTES as i32);
        operation.push(code);
        for &start in starts {
            code.local_get(start).i32_const(PIECE_BYTES as i32).i32_add().local_set(start);
        }
        shorten(code);
    });
}

/// Leaves at most a piece to be done, at the start.
fn pieces_from_the_end(code: &mut InstructionSink<'_>, operation: Operation) {
    loop_over_pieces(code, |code| {
        shorten(code);
        for start in [DESTINATION, SOURCE] {
            code.local_get(start).local_get(LENGTH).i32_add();
        }
        code.i32_const(PIECE_BYTES as i32);
        operation.push(code);
    });
}

fn loop_over_pieces(code: &mut InstructionSink<'_>, push_piece: impl FnOnce(&mut InstructionSink<'_>)) {
    code.loop_(BlockType::Empty).local_get(LENGTH).i32_const(PIECE_BYTES as i32).i32_gt_u().if_(BlockType::Empty);
    push_piece(code);
    code.br(1).end().end();
}

fn shorten(code: &mut InstructionSink<'_>) {
    code.local_get(LENGTH).i32_const(PIECE_BYTES as i32).i32_sub().local_set(LENGTH);
}

#[cfg(test)]
mod tests;
