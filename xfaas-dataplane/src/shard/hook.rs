//! Requests of apps whose hint is a hook: first `hook` runs on the shard where the request landed and says which session it is, then the
//! function runs as for any other hint. CONTRACT.md section 1, "Hints". Called by the HTTP stage and by `deliver`.

use super::connection::Asked;
use super::turn::Shard;
use crate::net::ErrorCode;
use crate::session::{Finished, Outcome};
use crate::sys::clock;
use crate::worker::{Call, Origin};
use xfaas_common::ids::SessionId;
use xfaas_common::limits::HOOK_APP;

/// All hooks of an app have one namespace on a shard, where each gets a worker of its own. Its hash is nobody's to choose, and any will do.
const HOOK_SESSION: &[u8] = b"hook";
const HOOK_TABLE_HASH: u32 = 0;

impl Shard {
    /// Begins a request with its hook.
    pub(super) fn run_hook(&mut self, id: u32, mut call: Box<Call>) {
        let app = self.proxy.function(call.function).expect("looked up by the caller").app;
        call.app = app | HOOK_APP;
        call.session = SessionId::new(HOOK_SESSION).expect("visible ASCII");
        call.table_hash = HOOK_TABLE_HASH;
        call.invocation_id = self.fresh.invocation();
        let connection = &mut self.connections[id as usize];
        let generation = u32::from(connection.generation);
        call.origin = Origin::Http { connection: id, generation, shard: self.core.0 };
        connection.busy = true;
        connection.asked = Some(Asked {
            shard: self.core.0,
            app: call.app,
            table_hash: call.table_hash,
            session: call.session,
            body_bytes: call.request.body().len(),
        });
        if let Some(finished) = self.submit(call) {
            self.on_hook_end(id, generation, finished);
        }
    }

    /// The hook is over: its output names the session, or it says why there is no answer.
    pub(super) fn on_hook_end(&mut self, id: u32, generation: u32, finished: Finished) {
        let Finished { mut call, outcome } = finished;
        let named = match outcome {
            Outcome::Replied => SessionId::new(&call.output)
                .ok_or(Outcome::failed(ErrorCode::BadSession, "the hook's output is not 1 to 64 bytes of 0x21-0x7E")),
            Outcome::Failed { code: ErrorCode::GuestError, .. } => {
                Err(Outcome::failed(ErrorCode::BadSession, "the hook returned a non-zero code: it finds no session in this request"))
            }
            other => Err(other),
        };
        let named = match named {
            Ok(named) => named,
            Err(outcome) => return self.reply_http(id, generation, Finished { call, outcome }),
        };
        let Some(connection) = self.connection(id, generation as u16) else { return self.keep_call(call) };
        (connection.busy, connection.asked) = (false, None);
        // Another app's function of the name has a hook of its own to ask.
        let Some(function) = self.proxy.function(call.function).filter(|function| call.is_for(function)) else {
            return self.refuse(id, call, ErrorCode::NoFunction, "the function was removed");
        };
        let mut session = named;
        let admitted = self.admit_named(function, &call.request, Some(&mut session));
        call.end_hook();
        call.session = session;
        self.now_ns = clock::monotonic_ns(); // the function's deadline starts now, not with its hook's
        self.on_admitted(id, call, admitted);
    }
}
