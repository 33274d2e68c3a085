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
//! (func $fill ...                                ;; one for each bulk memory operation that may be long (bulk)
//! ```
//! Custom sections are dropped too. Called by `program` with a module that was checked and validated.

mod bulk;

use self::bulk::{Body, Operators, Shims};
use super::abi::{HOST_DONE, HOST_MODULE};
use super::host_calls::PARK;
use super::shape::Shape;
use std::convert::Infallible;
use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
    BlockType, CodeSection, CoreTypeEncoder, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection, Module,
    RawSection, SectionId, TypeSection, ValType,
};
use wasmparser::{CompositeInnerType, FunctionBody, Parser};

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
    Rewriter::new(shape, Shims::of(wasm)?).parse_core_module(&mut module, Parser::new(0), wasm)?;
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

/// Function indices of the new module: imports, `$done`, the guest's functions, `$pause`, the shims, `xfaas:run`, the shims of bulk operations.
struct Rewriter<'a> {
    shape: &'a Shape,
    imports: u32,
    pause: u32,
    bulk: Shims,
    /// How many parameters each of the module's types has, 0 if it is no function's; our types follow.
    types: Vec<u32>,
    /// Type index of each function the module defines.
    functions: Vec<u32>,
}

impl<'a> Rewriter<'a> {
    fn new(shape: &'a Shape, bulk: Shims) -> Rewriter<'a> {
        let imports = shape.imports.len() as u32;
        Rewriter { shape, imports, pause: imports + 1 + shape.defined_functions, bulk, types: Vec::new(), functions: Vec::new() }
    }

    /// Index of `$done`.
    fn done(&self) -> u32 {
        self.imports
    }

    /// `() -> ()`: the type of `$pause` and `xfaas:run`.
    fn plain_type(&self) -> u32 {
        self.types.len() as u32
    }

    /// `(i32) -> ()`: the type of `$done`.
    fn done_type(&self) -> u32 {
        self.plain_type() + 1
    }

    /// `(i32, i32, i32) -> ()`: the type of the shims of bulk operations, if there are any.
    fn bulk_type(&self) -> u32 {
        self.plain_type() + 2
    }

    /// How many parameters the guest's own function has. A module without its type does not compile, whatever is said here.
    fn parameters(&self, defined: u32) -> u32 {
        let type_index = self.functions.get(defined as usize).copied();
        type_index.and_then(|index| self.types.get(index as usize).copied()).unwrap_or(0)
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
        types.ty().function([], []);
        types.ty().function([ValType::I32], []);
        if !self.bulk.is_empty() {
            types.ty().function(bulk::PARAMETERS, []);
        }
        Ok(())
    }

    /// A group is one entry of the section, of several types.
    fn parse_recursive_type_group(&mut self, encoder: CoreTypeEncoder<'_>, group: wasmparser::RecGroup) -> Result<()> {
        self.types.extend(group.types().map(|ty| match &ty.composite_type.inner {
            CompositeInnerType::Func(ty) => ty.params().len() as u32,
            _ => 0,
        }));
        utils::parse_recursive_type_group(self, encoder, group)
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
        for type_index in section.clone() {
            self.functions.push(type_index?);
        }
        utils::parse_function_section(self, functions, section)?;
        functions.function(self.plain_type());
        for (_, import) in self.parking_imports() {
            functions.function(import.type_index);
        }
        functions.function(self.plain_type());
        for _ in 0..self.bulk.len() {
            functions.function(self.bulk_type());
        }
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
        for body in self.bulk.bodies() {
            code.function(&body);
        }
        Ok(())
    }

    fn parse_function_body(&mut self, code: &mut CodeSection, body: FunctionBody<'_>) -> Result<()> {
        if self.bulk.is_empty() {
            return utils::parse_function_body(self, code, body);
        }
        let parameters = self.parameters(code.len());
        let locals = body.get_locals_reader()?.into_iter().map(|locals| {
            let (count, ty) = locals?;
            Ok((count, self.val_type(ty)?))
        });
        let mut rewritten = Body::new(parameters, locals.collect::<Result<_>>()?);
        let mut operators = Operators::new(body.get_operators_reader()?);
        while let Some((operator, operation)) = operators.next()? {
            match operation.and_then(|operation| Some((operation, self.bulk.find(operation)?))) {
                Some((operation, shim)) => rewritten.push_operation(operation, self.run() + 1 + shim, self.bulk_type()),
                None => rewritten.push(&self.instruction(operator)?),
            }
        }
        code.function(&rewritten.finish());
        Ok(())
    }

    fn parse_custom_section(&mut self, _module: &mut Module, _section: wasmparser::CustomSectionReader<'_>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::rewrite;
    use crate::worker::shape::{self, Entry};
    use wasmtime::{Engine, Linker, Module, Store};

    #[test]
    fn types_may_come_in_groups() {
        let text = r#"(module
          (rec (type $handle (func (result i32))) (type $plain (func))) (type $last (func (param i64 i64)))
          (memory (export "memory") 1)
          (func (export "handle") (type $handle) (i32.const 7)) (func (type $plain)) (func (type $last)))"#;
        let wasm = wat::parse_str(text).unwrap();
        let wasm = rewrite(&wasm, &shape::read(&wasm, 1 << 20, Entry::Handle).unwrap()).unwrap();
        let engine = Engine::default();
        let module = Module::new(&engine, wasm).unwrap();
        let (mut store, mut linker) = (Store::new(&engine, ()), Linker::new(&engine));
        linker.func_wrap("xfaas:host", "done", |result: i32| -> wasmtime::Result<()> { Err(wasmtime::Error::msg(result)) }).unwrap();
        let instance = linker.instantiate(&mut store, &module).unwrap();
        let run = instance.get_typed_func::<(), ()>(&mut store, super::EXPORT_RUN).unwrap();
        assert!(format!("{:#}", run.call(&mut store, ()).unwrap_err()).contains('7'));
    }
}
