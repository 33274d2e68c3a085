//! Compiled modules on disk, so that a start need not compile them again. wasmtime runs as native code whatever it is given as such, so all that makes this
//! sound is in this file and in `kept.rs`: only `keep` writes here, and what `load` hands to wasmtime is byte for byte what `keep` had from it.

use super::kept::{KeptError, KeptFiles, KeptName};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use wasmtime::{Engine, Module};

/// Counts up when the files' content changes its form.
const VERSION: u8 = 1;
/// Machine code shrinks to a third or a quarter, at some 200 MB/s.
const COMPRESSION_LEVEL: i32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum NativeCodeError {
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("compress or decompress compiled code")]
    Compression(#[source] std::io::Error),
    #[error("wasmtime does not take its compiled code back, or does not give it")]
    Wasmtime(#[source] Box<dyn std::error::Error + Send + Sync>),
}

pub struct NativeCode {
    files: KeptFiles,
    engine: Engine,
    /// Of wasmtime's version, its settings and this processor's features.
    engine_hash: [u8; 32],
}

impl NativeCode {
    /// Errors: the folder cannot be made, or is not for this user alone.
    pub fn open(folder: PathBuf, engine: &Engine) -> Result<NativeCode, KeptError> {
        let mut hasher = EngineHasher(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine_hash = hasher.0.finalize().into();
        Ok(NativeCode { files: KeptFiles::open(folder)?, engine: engine.clone(), engine_hash })
    }

    /// The name of what `wasm` becomes here.
    pub fn name_of(&self, wasm: &[u8]) -> KeptName {
        Sha256::new().chain_update([VERSION]).chain_update(self.engine_hash).chain_update(wasm).finalize().into()
    }

    /// The module that was kept under that name. `None`: none was. Errors: it cannot be read, is damaged, or wasmtime does not want it.
    pub fn load(&self, name: &KeptName) -> Result<Option<Module>, NativeCodeError> {
        let Some(packed) = self.files.read(name)? else { return Ok(None) };
        let artefact = zstd::decode_all(packed.as_slice()).map_err(NativeCodeError::Compression)?;
        // SAFETY: `deserialize` asks for the unmodified output of `Module::serialize`.
        // - it was that: only `keep` writes to the folder. Nobody else can: `KeptFiles::open` found that it, and the one above it, are this user's and
        //   writable for no other; whoever is this user, or root, can have this process run anything anyhow;
        // - it is unmodified: `KeptFiles::read` returns only what has the SHA-256, over name and content, that was written with it, and zstd gives back
        //   what it was given; the bytes are in memory of our own since before they were checked, so that the file may change now;
        // - of another version, settings or processor it may be: wasmtime looks for these itself, and returns an error.
        let module = unsafe { Module::deserialize(&self.engine, &artefact) };
        module.map(Some).map_err(|error| NativeCodeError::Wasmtime(error.into()))
    }

    /// Keeps a compiled module under a name of `name_of`.
    pub fn keep(&self, name: &KeptName, module: &Module) -> Result<(), NativeCodeError> {
        let artefact = module.serialize().map_err(|error| NativeCodeError::Wasmtime(error.into()))?;
        let packed = zstd::bulk::compress(&artefact, COMPRESSION_LEVEL).map_err(NativeCodeError::Compression)?;
        Ok(self.files.write(name, &packed)?)
    }

    /// As `KeptFiles::keep_only`.
    pub fn keep_only(&self, in_use: HashSet<KeptName>) -> Result<(), KeptError> {
        self.files.keep_only(in_use)
    }
}

/// `Hash` into SHA-256: a hasher of 64 bits would do for a table, not for a name.
struct EngineHasher(Sha256);

impl Hasher for EngineHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        unreachable!("the digest is taken instead")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::{Config, Instance, Store};

    const SUM: &str = r#"(module (func (export "sum") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"#;

    fn run(engine: &Engine, module: &Module) -> i32 {
        let mut store = Store::new(engine, ());
        let instance = Instance::new(&mut store, module, &[]).unwrap();
        let sum = instance.get_typed_func::<(i32, i32), i32>(&mut store, "sum").unwrap();
        sum.call(&mut store, (40, 2)).unwrap()
    }

    #[test]
    fn compiled_code_comes_back_and_runs() {
        let directory = tempfile::tempdir().unwrap();
        let (engine, wasm) = (Engine::default(), wat::parse_str(SUM).unwrap());
        let code = NativeCode::open(directory.path().join("native"), &engine).unwrap();
        let name = code.name_of(&wasm);
        assert!(code.load(&name).unwrap().is_none());
        code.keep(&name, &Module::new(&engine, &wasm).unwrap()).unwrap();
        assert_eq!(run(&engine, &code.load(&name).unwrap().unwrap()), 42);
    }

    #[test]
    fn other_settings_of_the_compiler_make_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let name = |config: &Config| {
            let engine = Engine::new(config).unwrap();
            NativeCode::open(directory.path().join("native"), &engine).unwrap().name_of(b"module")
        };
        assert_eq!(name(&Config::new()), name(&Config::new()));
        assert_ne!(name(&Config::new()), name(Config::new().epoch_interruption(true)));
        let code = NativeCode::open(directory.path().join("native"), &Engine::default()).unwrap();
        assert_ne!(code.name_of(b"module"), code.name_of(b"module2"));
    }

    #[test]
    fn what_is_no_code_of_this_engine_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        let code = NativeCode::open(directory.path().join("native"), &engine).unwrap();
        let other = Engine::new(Config::new().epoch_interruption(true)).unwrap();
        code.keep(&[1; 32], &Module::new(&other, wat::parse_str(SUM).unwrap()).unwrap()).unwrap();
        assert!(matches!(code.load(&[1; 32]), Err(NativeCodeError::Wasmtime(_))));
        code.files.write(&[2; 32], b"").unwrap();
        code.files.write(&[3; 32], b"not compressed").unwrap();
        assert!(code.load(&[2; 32]).is_err() && code.load(&[3; 32]).is_err());
    }
}
