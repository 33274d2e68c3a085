//! Restate as a peer: its server with the production profile on local disk, and a virtual object that counts, served by its SDK for node. What it
//! answers is durable, as nothing else in that table is.

use super::process::{Server, ServerError, directory, free_addresses, takes_connections, write};
use crate::load::{Fetched, Interrupt, fetch};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The first line is for node before 22, which the SDK asks for.
const SERVICE: &str = r#"Promise.withResolvers ??= () => { let resolve, reject; const promise = new Promise((a, b) => { resolve = a; reject = b; }); return { promise, resolve, reject }; };
const restate = await import(process.argv[3]);
const counter = restate.object({
  name: "Counter",
  handlers: {
    rmw: async (ctx) => { const n = ((await ctx.get("n")) ?? 0) + 1; ctx.set("n", n); return n; },
    read: restate.handlers.object.shared(async (ctx) => (await ctx.get("n")) ?? 0),
  },
});
restate.serve({ services: [counter], port: Number(process.argv[2]) });
"#;
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The server, and the process that runs its handlers.
pub struct Restate {
    pub server: Server,
    pub service: Server,
}

/// `modules`: the `node_modules` with `@restatedev/restate-server-linux-x64` and `@restatedev/restate-sdk`. Both processes run on the CPUs of
/// the calling thread.
pub fn start_restate(modules: &Path, interrupt: &Interrupt) -> Result<Restate, ServerError> {
    let [ingress, admin, fabric, handlers] = free_addresses()?;
    let service_directory = directory("restate-service")?;
    let script = service_directory.path().join("service.mjs");
    write(&script, SERVICE)?;
    let mut node = Command::new("node");
    node.arg(&script).arg(handlers.port().to_string()).arg(modules.join("@restatedev/restate-sdk/dist/index.js"));
    node.env("NODE_ENV", "production").env("RESTATE_LOGGING", "ERROR");
    let service = Server::start("restate's handlers", &mut node, handlers, service_directory, interrupt, takes_connections)?;

    let place = directory("restate")?;
    let mut restate = Command::new(modules.join("@restatedev/restate-server-linux-x64/bin/restate-server"));
    restate.args(["--production", "--auto-provision", "true", "--listen-mode", "tcp", "--no-logo", "--node-name", "bench"]);
    restate.arg("--base-dir").arg(place.path().join("data"));
    restate.env("RESTATE_INGRESS__BIND_ADDRESS", ingress.to_string()).env("RESTATE_ADMIN__BIND_ADDRESS", admin.to_string());
    restate.env("RESTATE_BIND_ADDRESS", fabric.to_string()).env("RESTATE_ADVERTISED_ADDRESS", format!("http://{fabric}"));
    restate.env("RUST_LOG", "warn").env("DO_NOT_TRACK", "1");
    let is_ready = |_| fetch(admin, &request(admin, "GET", "/health", "")).is_ok_and(|fetched| fetched.status == 200);
    let server = Server::start("restate", &mut restate, ingress, place, interrupt, is_ready)?;
    register(&server, (ingress, admin, handlers), interrupt)?;
    Ok(Restate { server, service })
}

fn request(host: SocketAddr, method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Tells the server of the handlers, and waits until they answer through it.
fn register(
    server: &Server,
    (ingress, admin, handlers): (SocketAddr, SocketAddr, SocketAddr),
    interrupt: &Interrupt,
) -> Result<(), ServerError> {
    let (body, asked) = (format!(r#"{{"uri":"http://{handlers}"}}"#), Instant::now());
    let is = |answer: Result<Fetched, _>, status: std::ops::Range<u16>| answer.is_ok_and(|fetched| status.contains(&fetched.status));
    let mut is_registered = false;
    loop {
        is_registered = is_registered || is(fetch(admin, &request(admin, "POST", "/deployments", &body)), 200..300);
        // Its content type must go when there is no body.
        let read = format!("POST /Counter/is-it-there-yet/read HTTP/1.1\r\nhost: {ingress}\r\ncontent-length: 0\r\n\r\n");
        if is_registered && is(fetch(ingress, read.as_bytes()), 200..300) {
            return Ok(());
        }
        if interrupt.is_set() {
            return Err(ServerError::Interrupted);
        }
        if asked.elapsed() > REGISTER_TIMEOUT {
            return Err(ServerError::NotReady { name: "restate", log: server.log_excerpt() });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
