//! The imports of `xfaas` on a guest's memory, as CONTRACT section 3 has them, with state that is outside. Every pointer and length is the guest's:
//! checked as xfaas checks them. Called by `host`.

use super::outside::{LockToken, OutsideState, StateFault, StateKey};
use std::ops::Range;
use std::sync::Arc;
use wasmtime::{Caller, Engine, Linker, Memory};
use xfaas_common::guest_abi::{
    ARG_BODY, ARG_METHOD, ARG_PATH, ARG_QUERY, ARG_SESSION, BAD_ARGUMENT, CANCEL_TIMER, EXPORT_MEMORY, IMPORT_MODULE, MODE_STRONG,
    MODE_WEAK, NOT_FOUND, OK, OVER_LIMIT, READ_INPUT, READ_SESSION, READ_STATE, SET_OUTPUT, SET_TIMER, SNAPSHOT_READ, WRITE_STATE,
};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::{KEY_BYTES_MAX, OUTPUT_BYTES_MAX, VALUE_BYTES_MAX};
use xfaas_dataplane::net::Request;

/// How an invocation ended.
#[derive(Debug)]
pub enum Ended {
    /// The output is the reply.
    Replied,
    /// `handle` returned that.
    Code(i32),
    Trapped,
    /// State could not be had.
    Fault(StateFault),
    /// All workers are busy.
    Full,
}

/// What an instance's host functions work on: the invocation that runs.
pub(super) struct Invocation {
    pub(super) outside: Arc<OutsideState>,
    pub(super) memory: Option<Memory>,
    pub(super) session: SessionId,
    pub(super) request: Request,
    pub(super) output: Vec<u8>,
    /// Open sections. Few: a list is found through faster than a table.
    pub(super) held: Vec<(StateKey, LockToken)>,
}

#[derive(Debug, thiserror::Error)]
#[error("the guest exports no memory")]
struct NoMemory;

pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Invocation>> {
    let mut linker = Linker::new(engine);
    let module = IMPORT_MODULE;
    linker.func_wrap(module, READ_INPUT, |mut caller: Caller<'_, Invocation>, argument: i32, buf: i32, buf_len: i32| {
        let (memory, invocation) = parts(&mut caller)?;
        Ok(read_input(invocation, memory, argument, buf, buf_len))
    })?;
    linker.func_wrap(module, SET_OUTPUT, |mut caller: Caller<'_, Invocation>, buf: i32, buf_len: i32| {
        let (memory, invocation) = parts(&mut caller)?;
        Ok(set_output(invocation, memory, buf, buf_len))
    })?;
    linker.func_wrap_async(module, READ_STATE, |mut caller: Caller<'_, Invocation>, (key, buf, buf_len, mode): (i32, i32, i32, i32)| {
        Box::new(async move { read_state(&mut caller, key, (buf, buf_len), mode).await })
    })?;
    linker.func_wrap_async(
        module,
        WRITE_STATE,
        |mut caller: Caller<'_, Invocation>, (key, buf, buf_len, mode): (i32, i32, i32, i32)| {
            Box::new(async move { write_state(&mut caller, key, (buf, buf_len), mode).await })
        },
    )?;
    // What the paper does not have is not compared.
    linker.func_wrap(module, SNAPSHOT_READ, |_: i32, _: i32, _: i32, _: i32| BAD_ARGUMENT)?;
    linker.func_wrap(module, READ_SESSION, |_: i32, _: i32, _: i32, _: i32| BAD_ARGUMENT)?;
    linker.func_wrap(module, SET_TIMER, |_: i32, _: i64, _: i32, _: i32| BAD_ARGUMENT)?;
    linker.func_wrap(module, CANCEL_TIMER, |_: i32| BAD_ARGUMENT)?;
    Ok(linker)
}

fn parts<'a>(caller: &'a mut Caller<'_, Invocation>) -> wasmtime::Result<(&'a mut [u8], &'a mut Invocation)> {
    let memory = match caller.data().memory {
        Some(memory) => memory,
        // `init` may call a function before its instance is whole.
        None => caller.get_export(EXPORT_MEMORY).and_then(wasmtime::Extern::into_memory).ok_or(NoMemory)?,
    };
    Ok(memory.data_and_store_mut(caller))
}

fn span(memory: &[u8], pointer: i32, length: i32) -> Option<Range<usize>> {
    let start = pointer as u32 as usize;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (end <= memory.len()).then_some(start..end)
}

/// A NUL ends a key.
fn read_key(memory: &[u8], pointer: i32) -> Result<Vec<u8>, i32> {
    let rest = memory.get(pointer as u32 as usize..).ok_or(BAD_ARGUMENT)?;
    let window = &rest[..rest.len().min(KEY_BYTES_MAX + 1)];
    match window.iter().position(|byte| *byte == 0) {
        Some(0) => Err(BAD_ARGUMENT),
        Some(length) => Ok(window[..length].to_vec()),
        None if window.len() > KEY_BYTES_MAX => Err(OVER_LIMIT),
        None => Err(BAD_ARGUMENT),
    }
}

/// Bad arguments win over limits.
fn state_arguments(memory: &[u8], key: i32, (buf, buf_len): (i32, i32), mode: i32) -> Result<(Vec<u8>, Range<usize>), i32> {
    let key = read_key(memory, key);
    if matches!(key, Err(BAD_ARGUMENT)) || !matches!(mode, MODE_WEAK | MODE_STRONG) {
        return Err(BAD_ARGUMENT);
    }
    let span = span(memory, buf, buf_len).ok_or(BAD_ARGUMENT)?;
    Ok((key?, span))
}

/// As much as fits. Output: the full length.
fn copy(value: &[u8], buffer: &mut [u8]) -> i32 {
    let bytes = value.len().min(buffer.len());
    buffer[..bytes].copy_from_slice(&value[..bytes]);
    value.len() as i32
}

fn read_input(invocation: &Invocation, memory: &mut [u8], argument: i32, buf: i32, buf_len: i32) -> i32 {
    let Some(span) = span(memory, buf, buf_len) else { return BAD_ARGUMENT };
    let request = &invocation.request;
    let value = match argument {
        ARG_BODY => request.body(),
        ARG_SESSION => invocation.session.as_bytes(),
        ARG_METHOD => request.method(),
        ARG_PATH => request.path_rest(),
        ARG_QUERY => request.query(),
        _ => return BAD_ARGUMENT,
    };
    copy(value, &mut memory[span])
}

fn set_output(invocation: &mut Invocation, memory: &[u8], buf: i32, buf_len: i32) -> i32 {
    let Some(span) = span(memory, buf, buf_len) else { return BAD_ARGUMENT };
    if span.len() > OUTPUT_BYTES_MAX {
        return OVER_LIMIT;
    }
    invocation.output.clear();
    invocation.output.extend_from_slice(&memory[span]);
    OK
}

/// Errors: the store is gone, or the lock was not to be had; the invocation ends with it.
async fn read_state(caller: &mut Caller<'_, Invocation>, key: i32, buffer: (i32, i32), mode: i32) -> wasmtime::Result<i32> {
    let (memory, invocation) = parts(caller)?;
    let (key, span) = match state_arguments(memory, key, buffer, mode) {
        Ok((key, span)) => (StateKey { session: invocation.session, key }, span),
        Err(code) => return Ok(code),
    };
    let outside = Arc::clone(&invocation.outside);
    let value = if mode == MODE_STRONG && !invocation.held.iter().any(|(held, _)| *held == key) {
        let token = LockToken::fresh();
        let value = outside.lock(&key, &token, true).await?;
        invocation.held.push((key, token));
        value
    } else {
        outside.read(&key).await?
    };
    let (memory, _) = parts(caller)?;
    Ok(value.map_or(NOT_FOUND, |value| copy(&value, &mut memory[span])))
}

/// A strong write ends the section that a strong read opened. Without one it locks, writes and releases. Errors as in `read_state`.
async fn write_state(caller: &mut Caller<'_, Invocation>, key: i32, buffer: (i32, i32), mode: i32) -> wasmtime::Result<i32> {
    let (memory, invocation) = parts(caller)?;
    let (key, span) = match state_arguments(memory, key, buffer, mode) {
        Ok((key, span)) => (StateKey { session: invocation.session, key }, span),
        Err(code) => return Ok(code),
    };
    if span.len() > VALUE_BYTES_MAX {
        return Ok(OVER_LIMIT);
    }
    // The guest's memory stands still until this returns.
    let value = &memory[span];
    if mode == MODE_WEAK {
        invocation.outside.write(&key, value).await?;
        return Ok(OK);
    }
    let at = match invocation.held.iter().position(|(held, _)| *held == key) {
        Some(at) => at,
        None => {
            let token = LockToken::fresh();
            invocation.outside.lock(&key, &token, false).await?;
            invocation.held.push((key.clone(), token));
            invocation.held.len() - 1
        }
    };
    invocation.outside.write_and_release(&key, value, &invocation.held[at].1).await?;
    invocation.held.swap_remove(at);
    Ok(OK)
}
