//! workerd as a peer: a Durable Object that counts, with its storage in memory. It runs one object in one thread, and one thread here serves
//! all; nothing else of it is tuned, since its configuration offers nothing that would matter.

use super::process::{Server, ServerError, directory, free_addresses, write};
use crate::load::{Interrupt, fetch};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// `/f/field` counts in a field of the object, `/f/rmw` in its storage, `/f/read` reads that. The session is the object's name, and is echoed as
/// xfaas does. A put is not awaited: the output gate holds the answer until it is done.
const WORKER: &str = r#"export class Counter {
  constructor(state) { this.storage = state.storage; this.n = 0; }
  async fetch(request) {
    const operation = new URL(request.url).pathname.split("/")[2];
    let n;
    if (operation === "field") { n = ++this.n; }
    else if (operation === "read") { n = (await this.storage.get("n")) ?? 0; }
    else { n = ((await this.storage.get("n")) ?? 0) + 1; this.storage.put("n", n); }
    return new Response(String(n), { headers: { "x-session-id": request.headers.get("x-session-id") } });
  }
}
export default {
  fetch(request, env) {
    const session = request.headers.get("x-session-id");
    return env.COUNTER.get(env.COUNTER.idFromName(session)).fetch(request);
  },
};
"#;

/// `binary`: that of the npm package `@cloudflare/workerd-linux-64`. It runs on the CPUs of the calling thread.
pub fn start_workerd(binary: &Path, interrupt: &Interrupt) -> Result<Server, ServerError> {
    let directory = directory("workerd")?;
    let [address] = free_addresses()?;
    write(&directory.path().join("worker.js"), WORKER)?;
    let configuration = directory.path().join("workerd.capnp");
    write(&configuration, &configuration_text(address))?;
    let mut command = Command::new(binary);
    command.arg("serve").arg(&configuration);
    Server::start("workerd", &mut command, address, directory, interrupt, answers)
}

fn answers(address: SocketAddr) -> bool {
    let request = format!("GET /f/read HTTP/1.1\r\nhost: {address}\r\nx-session-id: is-it-there-yet\r\n\r\n");
    fetch(address, request.as_bytes()).is_ok_and(|fetched| fetched.status == 200)
}

fn configuration_text(address: SocketAddr) -> String {
    format!(
        r#"using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .main)],
  sockets = [(name = "http", address = "{address}", http = (), service = "main")]
);
const main :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2025-01-01",
  durableObjectNamespaces = [(className = "Counter", uniqueKey = "counter")],
  durableObjectStorage = (inMemory = void),
  bindings = [(name = "COUNTER", durableObjectNamespace = "Counter")]
);
"#
    )
}
