//! A hook that is a module of its own travels inside the function's module, as a custom section: so it is stored, sent to containers and replaced
//! together with it. Called by the command line and at start, which put it in, and by `program`, which takes it out. The bytes are hostile.

use wasm_encoder::{CustomSection, Module, RawSection};
use wasmparser::{Encoding, Parser, Payload};

/// Name of the section. Of several the first counts.
const SECTION: &str = "xfaas:hook";
/// Magic number and version.
const HEADER_BYTES: usize = 8;

/// Puts `hook` into `wasm`, before its other sections: whatever is wrong with its end is still wrong then.
/// Bytes too few for a module are returned as they are; loading them says what is wrong.
pub fn attach_hook(wasm: &[u8], hook: &[u8]) -> Vec<u8> {
    let Some((header, sections)) = wasm.split_at_checked(HEADER_BYTES) else { return wasm.to_vec() };
    let mut module = Module::new();
    module.section(&CustomSection { name: SECTION.into(), data: hook.into() });
    [header, &module.finish()[HEADER_BYTES..], sections].concat()
}

/// The module without the hook that it carries, and the hook. `None`: it carries none, or is no module.
pub(super) fn detach_hook(wasm: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut module = Module::new();
    let mut hook = None;
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.ok()?;
        match &payload {
            Payload::Version { encoding: Encoding::Component, .. } => return None,
            Payload::CustomSection(section) if section.name() == SECTION => {
                hook.get_or_insert(section.data());
                continue;
            }
            _ => {}
        }
        if let Some((id, range)) = payload.as_section() {
            module.section(&RawSection { id, data: wasm.get(range)? });
        }
    }
    hook.map(|hook| (module.finish(), hook))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_comes_out_as_it_was_put_in_and_leaves_the_module_as_it_was() {
        let wasm = wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "handle") (result i32) (i32.const 0)))"#).unwrap();
        assert!(detach_hook(&wasm).is_none());
        for hook in [&b""[..], &[7; 300]] {
            let both = attach_hook(&wasm, hook);
            assert_eq!(detach_hook(&both), Some((wasm.clone(), hook)));
            let again = attach_hook(&both, b"newer");
            assert_eq!(detach_hook(&again), Some((wasm.clone(), &b"newer"[..])), "the last one put in counts");
        }
    }

    #[test]
    fn what_is_no_module_stays_none() {
        let wasm = wat::parse_str("(module (func))").unwrap();
        let both = attach_hook(&wasm, b"hook");
        for cut in 0..both.len() {
            let is_whole = detach_hook(&both[..cut]).is_none_or(|(rest, _)| wasm.starts_with(&rest));
            assert!(is_whole, "{cut}");
        }
        for at in 0..both.len() {
            // Changed anywhere: something or nothing comes out, never a panic.
            let mut changed = both.clone();
            changed[at] ^= 0x7f;
            drop(detach_hook(&changed));
        }
        assert_eq!(attach_hook(b"\0asm", b"hook"), b"\0asm");
        let component = wat::parse_str("(component)").unwrap();
        assert!(detach_hook(&attach_hook(&component, b"hook")).is_none());
    }
}
