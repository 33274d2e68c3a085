//! workerd, the runtime of Cloudflare Workers, with a Durable Object for each session that keeps its storage in memory. Started from its npm
//! package; one process with its own choice of threads, all on the caller's CPUs.

use super::process::{Server, ServerError, directory, free_addresses, installed, write};
use crate::load::{Interrupt, fetch};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

const WORKER: &str = include_str!("../../peers/workerd.mjs");
const BINARY: &str = "npm/node_modules/@cloudflare/workerd-linux-64/bin/workerd";

/// workerd with the counter's Durable Objects. `packages`: where peers are installed. Runs where the calling thread may.
pub fn start_workerd(packages: &Path, interrupt: &Interrupt) -> Result<Server, ServerError> {
    let binary = installed(packages, BINARY)?;
    let directory = directory("workerd")?;
    let [address] = free_addresses()?;
    write(&directory.path().join("worker.mjs"), WORKER)?;
    let configuration = directory.path().join("config.capnp");
    write(&configuration, &configuration_text(address))?;
    let mut command = Command::new(binary);
    command.arg("serve").arg(configuration);
    Server::start("workerd", &mut command, address, directory, interrupt, answers)
}

fn answers(address: SocketAddr) -> bool {
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\nx-session-id: is-it-there-yet\r\nx-function: read\r\n\r\n");
    fetch(address, request.as_bytes()).is_ok_and(|fetched| fetched.status == 200)
}

fn configuration_text(address: SocketAddr) -> String {
    format!(
        "using Workerd = import \"/workerd/workerd.capnp\";

const config :Workerd.Config = (
  services = [ (name = \"main\", worker = .counters) ],
  sockets = [ (name = \"http\", address = \"{address}\", http = (), service = \"main\") ],
);

const counters :Workerd.Worker = (
  modules = [ (name = \"worker.mjs\", esModule = embed \"worker.mjs\") ],
  compatibilityDate = \"2026-11-01\",
  durableObjectNamespaces = [ (className = \"Counter\", uniqueKey = \"xfaas-bench-peers\") ],
  durableObjectStorage = (inMemory = void),
  bindings = [ (name = \"counters\", durableObjectNamespace = \"Counter\") ],
);
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_in_memory_as_xfaas_keeps_it() {
        let text = configuration_text(SocketAddr::from(([127, 0, 0, 1], 81)));
        assert!(text.contains("address = \"127.0.0.1:81\"") && text.contains("inMemory = void"));
        assert!(WORKER.contains("export class Counter"));
    }

    #[test]
    fn a_package_that_is_not_there_is_named() {
        let folder = directory("peers").unwrap();
        let error = start_workerd(folder.path(), &Interrupt::default()).err().unwrap();
        assert!(matches!(&error, ServerError::Missing { path, .. } if path.ends_with(BINARY)), "{error}");
    }
}
