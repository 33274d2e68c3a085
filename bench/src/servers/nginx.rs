//! nginx as a yardstick: one worker that answers `return 200`, tuned as its documentation tells for a benchmark of that kind.

use super::process::{Server, ServerError, directory, free_addresses, takes_connections, write};
use crate::load::Interrupt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// nginx with one worker on `cpu`; every path is answered with 200 and the body `1`.
pub fn start_nginx(cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
    let directory = directory("nginx")?;
    let [address] = free_addresses()?;
    let configuration = directory.path().join("nginx.conf");
    write(&configuration, &configuration_text(directory.path(), address, cpu))?;
    let mut command = Command::new(find_nginx());
    command.arg("-p").arg(directory.path()).arg("-c").arg(&configuration).arg("-e").arg(directory.path().join("error.log"));
    Server::start("nginx", &mut command, address, directory, interrupt, takes_connections)
}

/// Debian installs it where the PATH of a user does not look.
fn find_nginx() -> &'static str {
    const SYSTEM: &str = "/usr/sbin/nginx";
    if Path::new(SYSTEM).is_file() { SYSTEM } else { "nginx" }
}

fn configuration_text(directory: &Path, address: SocketAddr, cpu: u16) -> String {
    let directory = directory.display();
    // The mask is written in binary, the lowest CPU last.
    let mask = format!("1{}", "0".repeat(usize::from(cpu)));
    let mut text = String::new();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].iter().fold(String::new(), |mut lines, name| {
        writeln!(lines, "    {name}_temp_path {directory}/{name};").expect("a String takes all");
        lines
    });
    write!(
        text,
        "daemon off;
worker_processes 1;
worker_cpu_affinity {mask};
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{
    worker_connections 4096;
    multi_accept on;
}}
http {{
    access_log off;
    default_type application/octet-stream;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
{temporary}    server {{
        listen {address};
        location / {{
            return 200 \"1\";
        }}
    }}
}}
"
    )
    .expect("a String takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_is_pinned_and_every_path_is_in_the_directory() {
        let text = configuration_text(Path::new("/tmp/x"), SocketAddr::from(([127, 0, 0, 1], 81)), 2);
        assert!(text.contains("worker_cpu_affinity 100;"));
        assert!(text.contains("listen 127.0.0.1:81;"));
        assert!(text.contains("    scgi_temp_path /tmp/x/scgi;\n"));
    }
}
