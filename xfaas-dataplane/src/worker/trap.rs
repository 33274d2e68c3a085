//! Why a guest was stopped by itself, in the words of an error reply.

use wasmtime::Trap;

/// The kinds of traps that a guest can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrapKind {
    Unreachable,
    MemoryOutOfBounds,
    TableOutOfBounds,
    StackOverflow,
    DivisionByZero,
    IntegerOverflow,
    BadConversion,
    /// An indirect call to an empty table entry, or to a function of another type.
    BadIndirectCall,
    /// Not the guest's doing: the host could not serve it.
    Host,
    Other,
}

impl TrapKind {
    /// One line for the `detail` of an error reply.
    pub const fn detail(self) -> &'static str {
        match self {
            TrapKind::Unreachable => "the function executed `unreachable`",
            TrapKind::MemoryOutOfBounds => "the function accessed memory out of bounds",
            TrapKind::TableOutOfBounds => "the function accessed a table out of bounds",
            TrapKind::StackOverflow => "the function exhausted its call stack",
            TrapKind::DivisionByZero => "the function divided by zero",
            TrapKind::IntegerOverflow => "the function overflowed an integer division",
            TrapKind::BadConversion => "the function converted a number out of range to an integer",
            TrapKind::BadIndirectCall => "the function called a table entry that is empty or of another type",
            TrapKind::Host => "the host could not serve the function",
            TrapKind::Other => "the function trapped",
        }
    }

    pub(super) fn of(error: &wasmtime::Error) -> TrapKind {
        let Some(trap) = error.downcast_ref::<Trap>() else { return TrapKind::Host };
        match trap {
            Trap::UnreachableCodeReached => TrapKind::Unreachable,
            Trap::MemoryOutOfBounds => TrapKind::MemoryOutOfBounds,
            Trap::TableOutOfBounds => TrapKind::TableOutOfBounds,
            Trap::StackOverflow => TrapKind::StackOverflow,
            Trap::IntegerDivisionByZero => TrapKind::DivisionByZero,
            Trap::IntegerOverflow => TrapKind::IntegerOverflow,
            Trap::BadConversionToInteger => TrapKind::BadConversion,
            Trap::IndirectCallToNull | Trap::BadSignature | Trap::NullReference => TrapKind::BadIndirectCall,
            _ => TrapKind::Other,
        }
    }
}
