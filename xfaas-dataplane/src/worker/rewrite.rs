//! Adds to a guest what lets its fiber live from call to call and wait without a boxed future:
//!
//! ```text
//! (import "xfaas:host" "done" (func $done (param i32)))
//! (func $pause)                                  ;; its entry is an epoch check: the host makes it fire
//! (func $shim ...                                ;; one for each import that may park; every use of the import goes here
//!   loop { r = call $import(...); if r != PARK { return r }; call $pause })
//! (func (export "xfaas:run")                     ;; never returns
//!   call $start                                  ;; only if the module had a start section, which is dropped
//!   loop { r = call $handle; call $done(r); call $pause })
//! ```
//! Custom sections are dropped too. Called by `program` with a module that was checked and validated.

use super::abi::{HOST_DONE, HOST_MODULE};
use super::host_calls::PARK;
use super::shape::Shape;
use std::convert::Infallible;
use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
    BlockType, CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection, Module, RawSection, SectionId,
    TypeSection, ValType,
};
use wasmparser::Parser;

/// The function that never returns.
pub(super) const EXPORT_RUN: &str = "xfaas:run";

type Result<T> = std::result::Result<T, Error<Infallible>>;

/// Input: a module and its shape. Output: the module with the host loop.
pub(super) fn rewrite(wasm: &[u8], shape: &Shape) -> Result<Vec<u8>> {
    let stripped;
    let wasm = if shape.start.is_some() {
        stripped = without_start(wasm)?;
        stripped.as_slice()
    } else {
        wasm
    };
    let mut module = Module::new();
    Rewriter::new(shape).parse_core_module(&mut module, Parser::new(0), wasm)?;
    Ok(module.finish())
}

fn without_start(wasm: &[u8]) -> Result<Vec<u8>> {
    let mut module = Module::new();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload?.as_section() {
            Some((id, range)) if id != u8::from(SectionId::Start) => module.section(&RawSection { id, data: &wasm[range] }),
            _ => continue,
        };
    }
    Ok(module.finish())
}

/// Function indices of the new module: imports, `$done`, the guest's functions, `$pause`, the shims, `xfaas:run`.
struct Rewriter<'a> {
    shape: &'a Shape,
    imports: u32,
    pause: u32,
    /// Types the module has; ours follow.
    types: u32,
}

impl<'a> Rewriter<'a> {
    fn new(shape: &'a Shape) -> Rewriter<'a> {
        let imports = shape.imports.len() as u32;
        Rewriter { shape, imports, pause: imports + 1 + shape.defined_functions, types: 0 }
    }

    /// Index of `$done`.
    fn done(&self) -> u32 {
        self.imports
    }

    /// `() -> ()`: the type of `$pause` and `xfaas:run`.
    fn plain_type(&self) -> u32 {
        self.types
    }

    /// `(i32) -> ()`: the type of `$done`.
    fn done_type(&self) -> u32 {
        self.types + 1
    }

    /// Imports that get a shim, in their order.
    fn parking_imports(&self) -> impl Iterator<Item = (u32, &'a super::shape::Import)> {
        (0..).zip(&self.shape.imports).filter(|(_, import)| import.may_park)
    }

    fn run(&self) -> u32 {
        self.pause + 1 + self.parking_imports().count() as u32
    }

    fn add_done(&self, imports: &mut ImportSection) {
        imports.import(HOST_MODULE, HOST_DONE, EntityType::Function(self.done_type()));
    }

    fn map(&self, function: u32) -> u32 {
        let Some(import) = self.shape.imports.get(function as usize) else { return function + 1 };
        if !import.may_park {
            return function;
        }
        let earlier = self.parking_imports().take_while(|(index, _)| *index < function).count() as u32;
        self.pause + 1 + earlier
    }

    fn shim_body(&self, import_index: u32, parameters: u32) -> Function {
        let result = parameters;
        let mut body = Function::new([(1, ValType::I32)]);
        let mut code = body.instructions();
        code.loop_(BlockType::Empty);
        for parameter in 0..parameters {
            code.local_get(parameter);
        }
        code.call(import_index).local_tee(result).i32_const(PARK).i32_ne();
        code.if_(BlockType::Empty).local_get(result).return_().end();
        code.call(self.pause).br(0).end();
        code.unreachable().end();
        body
    }

    fn run_body(&self) -> Function {
        let mut body = Function::new([]);
        let mut code = body.instructions();
        if let Some(start) = self.shape.start {
            code.call(self.map(start));
        }
        code.loop_(BlockType::Empty);
        code.call(self.map(self.shape.handle)).call(self.done()).call(self.pause).br(0);
        code.end().end();
        body
    }
}

impl Reencode for Rewriter<'_> {
    type Error = Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32> {
        Ok(self.map(function))
    }

    fn parse_type_section(&mut self, types: &mut TypeSection, section: wasmparser::TypeSectionReader<'_>) -> Result<()> {
        utils::parse_type_section(self, types, section)?;
        self.types = types.len();
        types.ty().function([], []);
        types.ty().function([ValType::I32], []);
        Ok(())
    }

    fn parse_import_section(&mut self, imports: &mut ImportSection, section: wasmparser::ImportSectionReader<'_>) -> Result<()> {
        utils::parse_import_section(self, imports, section)?;
        self.add_done(imports);
        Ok(())
    }

    /// A module without imports has no import section to add to.
    fn intersperse_section_hook(&mut self, module: &mut Module, after: Option<SectionId>, before: Option<SectionId>) -> Result<()> {
        if after == Some(SectionId::Type) && before != Some(SectionId::Import) {
            let mut imports = ImportSection::new();
            self.add_done(&mut imports);
            module.section(&imports);
        }
        Ok(())
    }

    fn parse_function_section(&mut self, functions: &mut FunctionSection, section: wasmparser::FunctionSectionReader<'_>) -> Result<()> {
        utils::parse_function_section(self, functions, section)?;
        functions.function(self.plain_type());
        for (_, import) in self.parking_imports() {
            functions.function(import.type_index);
        }
        functions.function(self.plain_type());
        Ok(())
    }

    fn parse_export_section(&mut self, exports: &mut ExportSection, section: wasmparser::ExportSectionReader<'_>) -> Result<()> {
        utils::parse_export_section(self, exports, section)?;
        exports.export(EXPORT_RUN, ExportKind::Func, self.run());
        Ok(())
    }

    fn parse_code_section(&mut self, code: &mut CodeSection, section: wasmparser::CodeSectionReader<'_>) -> Result<()> {
        utils::parse_code_section(self, code, section)?;
        let mut pause = Function::new([]);
        pause.instructions().end();
        code.function(&pause);
        for (index, import) in self.parking_imports() {
            code.function(&self.shim_body(index, import.parameters));
        }
        code.function(&self.run_body());
        Ok(())
    }

    fn parse_custom_section(&mut self, _module: &mut Module, _section: wasmparser::CustomSectionReader<'_>) -> Result<()> {
        Ok(())
    }
}
