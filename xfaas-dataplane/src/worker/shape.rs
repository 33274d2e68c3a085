//! Reads what a module imports and exports, and says exactly why one is refused. Called by `program` before anything runs or compiles.
//! The bytes are hostile and not yet validated here: every index is looked up, none trusted.

use super::abi::HOST_FUNCTIONS;
use super::effort::Effort;
use super::program::LoadError;
use wasmparser::{
    CompositeInnerType, Element, ElementItems, ExternalKind, FuncType, MemoryType, Parser, Payload, RecGroup, TypeRef, ValType,
};
use xfaas_common::guest_abi::{EXPORT_HANDLE, EXPORT_HOOK, EXPORT_INIT, EXPORT_MEMORY, EXPORT_RESERVED_PREFIX, IMPORT_MODULE};
use xfaas_common::limits::{MODULE_ELEMENTS_MAX, MODULE_FUNCTIONS_MAX, MODULE_IMPORTS_MAX, MODULE_TYPE_VALUES_MAX, MODULE_TYPES_MAX};

/// What a WASI reactor exports beside its functions: run once, before `init`.
pub(super) const EXPORT_INITIALIZE: &str = "_initialize";
/// Exports that pre-initialisation adds for a moment.
const EXPORT_WIZER_PREFIX: &str = "__wizer_";
const PAGE_BYTES: u64 = 64 << 10;

/// An import, in the order of the module: all of them are functions of the import table.
pub(super) struct Import {
    pub(super) type_index: u32,
    pub(super) parameters: u32,
    pub(super) may_park: bool,
}

/// Which of a module's functions is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Handle,
    Hook,
}

/// What the rest of loading needs to know of a module that may be loaded.
pub(super) struct Shape {
    pub(super) imports: Vec<Import>,
    /// Functions that the module itself defines.
    pub(super) defined_functions: u32,
    /// Function index of the entry.
    pub(super) handle: u32,
    /// Function index of the start section's function.
    pub(super) start: Option<u32>,
    pub(super) has_initialize: bool,
    pub(super) has_init: bool,
}

#[derive(Default)]
struct Parts<'a> {
    types: Vec<Option<FuncType>>,
    imports: Vec<wasmparser::Import<'a>>,
    /// Type index of each function the module defines.
    functions: Vec<u32>,
    memories: Vec<MemoryType>,
    exports: Vec<wasmparser::Export<'a>>,
    start: Option<u32>,
    /// Parameters and results of its types.
    type_values: usize,
    elements: usize,
}

/// Input: a module's bytes and the memory one worker may have. Errors: the first reason to refuse the module.
pub(super) fn read(wasm: &[u8], memory_bytes_max: u64, entry: Entry) -> Result<Shape, LoadError> {
    let parts = parts(wasm)?;
    let imports = parts.imports.iter().map(|import| parts.check_import(import)).collect::<Result<Vec<_>, _>>()?;
    parts.check_memory(memory_bytes_max)?;
    let reserved = |name: &str| name.starts_with(EXPORT_RESERVED_PREFIX) || name.starts_with(EXPORT_WIZER_PREFIX);
    if let Some(export) = parts.exports.iter().find(|export| reserved(export.name)) {
        return Err(LoadError::ReservedExport { name: export.name.to_owned() });
    }
    let handle = match entry {
        Entry::Handle => parts.function_export(EXPORT_HANDLE, &[ValType::I32])?.ok_or(LoadError::NoHandle)?,
        Entry::Hook => parts.function_export(EXPORT_HOOK, &[ValType::I32])?.ok_or(LoadError::NoHook)?,
    };
    Ok(Shape {
        has_initialize: parts.function_export(EXPORT_INITIALIZE, &[])?.is_some(),
        has_init: parts.function_export(EXPORT_INIT, &[])?.is_some(),
        defined_functions: parts.functions.len() as u32,
        start: parts.start,
        handle,
        imports,
    })
}

fn parts(wasm: &[u8]) -> Result<Parts<'_>, LoadError> {
    let (mut parts, mut effort) = (Parts::default(), Effort::default());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(not_wasm)? {
            Payload::Version { encoding: wasmparser::Encoding::Component, .. } => return Err(LoadError::Component),
            Payload::TypeSection(section) => {
                for group in section {
                    parts.add_types(group.map_err(not_wasm)?)?;
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    check_count("imports", parts.imports.len(), MODULE_IMPORTS_MAX)?;
                    parts.imports.push(import.map_err(not_wasm)?);
                }
            }
            Payload::FunctionSection(section) => {
                for type_index in section {
                    check_count("functions", parts.functions.len(), MODULE_FUNCTIONS_MAX)?;
                    parts.functions.push(type_index.map_err(not_wasm)?);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    parts.memories.push(memory.map_err(not_wasm)?);
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    parts.exports.push(export.map_err(not_wasm)?);
                }
            }
            Payload::ElementSection(section) => {
                for element in section {
                    parts.add_element(&element.map_err(not_wasm)?)?;
                }
            }
            Payload::StartSection { func, .. } => parts.start = Some(func),
            Payload::CodeSectionEntry(body) => effort.add(&body)?,
            _ => {}
        }
    }
    Ok(parts)
}

impl Parts<'_> {
    fn add_types(&mut self, group: RecGroup) -> Result<(), LoadError> {
        for ty in group.into_types() {
            check_count("types", self.types.len(), MODULE_TYPES_MAX)?;
            let ty = match ty.composite_type.inner {
                CompositeInnerType::Func(ty) => Some(ty),
                _ => None,
            };
            self.type_values += ty.as_ref().map_or(0, |ty| ty.params().len() + ty.results().len());
            self.types.push(ty);
        }
        check_all("parameters and results of function types", self.type_values, MODULE_TYPE_VALUES_MAX)
    }

    fn add_element(&mut self, element: &Element<'_>) -> Result<(), LoadError> {
        let items = match &element.items {
            ElementItems::Functions(items) => items.count(),
            ElementItems::Expressions(_, items) => items.count(),
        };
        self.elements = self.elements.saturating_add(1).saturating_add(items as usize);
        check_all("element segments and entries of them", self.elements, MODULE_ELEMENTS_MAX)
    }

    fn function_type(&self, index: u32) -> Option<&FuncType> {
        self.types.get(index as usize)?.as_ref()
    }

    fn check_import(&self, import: &wasmparser::Import<'_>) -> Result<Import, LoadError> {
        let full_name = || format!("{}.{}", import.module, import.name);
        let known = HOST_FUNCTIONS.iter().find(|known| import.module == IMPORT_MODULE && import.name == known.name);
        let known = known.ok_or_else(|| LoadError::UnknownImport { name: full_name() })?;
        let parameters: Vec<ValType> = known.are_wide().map(|is_wide| if is_wide { ValType::I64 } else { ValType::I32 }).collect();
        let expected = || signature(&parameters, &[ValType::I32]);
        let TypeRef::Func(type_index) = import.ty else {
            return Err(LoadError::ImportType { name: full_name(), expected: expected(), found: "not a function".to_owned() });
        };
        let ty = self.function_type(type_index).ok_or_else(|| LoadError::NotWasm { reason: "an import has no type".to_owned() })?;
        if ty.params() != parameters || ty.results() != [ValType::I32] {
            return Err(LoadError::ImportType { name: full_name(), expected: expected(), found: signature(ty.params(), ty.results()) });
        }
        Ok(Import { type_index, parameters: known.parameters as u32, may_park: known.may_park })
    }

    fn check_memory(&self, limit_bytes: u64) -> Result<(), LoadError> {
        let [memory] = self.memories.as_slice() else {
            return if self.memories.is_empty() { Err(LoadError::NoMemory) } else { Err(LoadError::SeveralMemories) };
        };
        if memory.shared {
            return Err(LoadError::SharedMemory);
        }
        if memory.memory64 {
            return Err(LoadError::Memory64);
        }
        let declared_bytes = memory.initial.saturating_mul(PAGE_BYTES);
        if declared_bytes > limit_bytes {
            return Err(LoadError::MemoryTooLarge { declared_bytes, limit_bytes });
        }
        let is_exported = self.exports.iter().any(|export| export.name == EXPORT_MEMORY && export.kind == ExternalKind::Memory);
        if is_exported { Ok(()) } else { Err(LoadError::NoMemory) }
    }

    /// The function exported as `name`, which must take nothing and return `results`; `None` if there is no such export.
    fn function_export(&self, name: &'static str, results: &[ValType]) -> Result<Option<u32>, LoadError> {
        let Some(export) = self.exports.iter().find(|export| export.name == name) else { return Ok(None) };
        let expected = || signature(&[], results);
        if export.kind != ExternalKind::Func {
            return Err(LoadError::ExportType { name, expected: expected(), found: "not a function".to_owned() });
        }
        let imports = self.imports.len();
        let type_index = match (export.index as usize).checked_sub(imports) {
            Some(defined) => self.functions.get(defined).copied(),
            None => match self.imports[export.index as usize].ty {
                TypeRef::Func(type_index) => Some(type_index),
                _ => None,
            },
        };
        let ty = type_index.and_then(|index| self.function_type(index));
        let ty = ty.ok_or_else(|| LoadError::NotWasm { reason: format!("the export `{name}` has no type") })?;
        if !ty.params().is_empty() || ty.results() != results {
            return Err(LoadError::ExportType { name, expected: expected(), found: signature(ty.params(), ty.results()) });
        }
        Ok(Some(export.index))
    }
}

fn signature(parameters: &[ValType], results: &[ValType]) -> String {
    let list = |types: &[ValType]| types.iter().map(ValType::to_string).collect::<Vec<_>>().join(", ");
    format!("({}) -> ({})", list(parameters), list(results))
}

/// Errors: there is no room for one more.
fn check_count(what: &'static str, count: usize, most: usize) -> Result<(), LoadError> {
    check_all(what, count + 1, most)
}

fn check_all(what: &'static str, count: usize, most: usize) -> Result<(), LoadError> {
    if count <= most { Ok(()) } else { Err(LoadError::TooMany { what, most }) }
}

pub(super) fn not_wasm(error: wasmparser::BinaryReaderError) -> LoadError {
    LoadError::NotWasm { reason: error.to_string() }
}
