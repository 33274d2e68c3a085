//! Where the measured servers and clients are: in two network namespaces that a veth pair joins, made by whoever started us, or all on
//! loopback. A thread enters a namespace to make a socket there; the socket stays there.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("there is no network namespace {name:?}: `ip netns` lists them")]
    Missing {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot enter the network namespace {name:?} (needs CAP_SYS_ADMIN)")]
    Enter {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("a thread in the network namespace {name:?} panicked")]
    Panicked { name: String },
    #[error("`ip` cannot be run")]
    Ip(#[source] std::io::Error),
    #[error("the network namespace {name:?} has no device with the address {ip}")]
    NoDevice { name: String, ip: IpAddr },
}

/// Two namespaces, or none.
#[derive(Clone, Debug, Default)]
pub struct Network {
    veth: Option<Veth>,
}

#[derive(Clone, Debug)]
struct Veth {
    server: String,
    client: String,
    server_ip: IpAddr,
}

impl Network {
    /// Namespaces by name, and the server's address as the client sees it.
    pub fn veth(server: String, client: String, server_ip: IpAddr) -> Network {
        Network { veth: Some(Veth { server, client, server_ip }) }
    }

    pub fn loopback() -> Network {
        Network::default()
    }

    pub fn is_veth(&self) -> bool {
        self.veth.is_some()
    }

    /// The address of a server with that port; port 0 for any.
    pub fn server_address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.veth.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |veth| veth.server_ip), port)
    }

    /// The device at the servers' end of the veth pair; `None` on loopback.
    pub fn server_device(&self) -> Result<Option<String>, NetworkError> {
        let Some(Veth { server, server_ip, .. }) = &self.veth else { return Ok(None) };
        let output = Command::new("ip").args(["-n", server, "-brief", "address"]).output().map_err(NetworkError::Ip)?;
        let device = device_with(&String::from_utf8_lossy(&output.stdout), *server_ip);
        device.map(Some).ok_or_else(|| NetworkError::NoDevice { name: server.clone(), ip: *server_ip })
    }

    /// A command whose program will run where servers are.
    pub fn server_command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(veth) = &self.veth else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &veth.server]).arg(program);
        command
    }

    /// Runs `work` on a thread that is where servers are; sockets it makes are there.
    pub fn at_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
        in_namespace(self.veth.as_ref().map(|veth| veth.server.as_str()), work)
    }

    /// Runs `work` on a thread that is where clients are; sockets it makes are there.
    pub fn at_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
        in_namespace(self.veth.as_ref().map(|veth| veth.client.as_str()), work)
    }
}

/// `brief`: lines of a device's name (a veth's with `@` and its peer's), its state, and its addresses with their lengths.
fn device_with(brief: &str, ip: IpAddr) -> Option<String> {
    brief.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let is_ours = |word: &str| word.split_once('/').is_some_and(|(address, _)| address.parse() == Ok(ip));
        words.skip(1).any(is_ours).then(|| name.split('@').next().unwrap_or(name).to_owned())
    })
}

fn in_namespace<T: Send>(name: Option<&str>, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    let Some(name) = name else { return Ok(work()) };
    in_namespace_at(name, &Path::new("/run/netns").join(name), work)
}

/// Runs `work` on a thread of its own in the network namespace whose file is `path`. `name`: for errors.
pub(crate) fn in_namespace_at<T: Send>(name: &str, path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    let namespace = File::open(path).map_err(|source| NetworkError::Missing { name: name.to_owned(), source })?;
    let run = || {
        let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        entered.map_err(|error| NetworkError::Enter { name: name.to_owned(), source: error.into() })?;
        Ok(work())
    };
    // A thread of its own, that ends there.
    std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| NetworkError::Panicked { name: name.to_owned() })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_namespaces_everything_is_on_loopback() {
        let network = Network::loopback();
        assert_eq!(network.server_address(9_071).to_string(), "127.0.0.1:9071");
        assert_eq!(network.server_command("redis-server").get_program(), "redis-server");
        assert_eq!(network.at_client(|| 7).unwrap(), 7);
    }

    #[test]
    fn a_device_is_found_by_its_address() {
        let brief = "lo               UNKNOWN        127.0.0.1/8 ::1/128 \nxfaas0@if2       UP             10.231.0.1/24 fd00:231::1/64 \n";
        assert_eq!(device_with(brief, "10.231.0.1".parse().unwrap()).as_deref(), Some("xfaas0"));
        assert_eq!(device_with(brief, "fd00:231::1".parse().unwrap()).as_deref(), Some("xfaas0"));
        assert_eq!(device_with(brief, "10.231.0.2".parse().unwrap()), None);
        assert_eq!(Network::loopback().server_device().unwrap(), None);
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let network = Network::veth("no-such-namespace".to_owned(), "nor-this".to_owned(), Ipv4Addr::LOCALHOST.into());
        let error = network.at_server(|| ()).unwrap_err();
        assert!(matches!(&error, NetworkError::Missing { name, .. } if name == "no-such-namespace"), "{error}");
        let command = network.server_command("xfaas");
        assert_eq!(command.get_args().last().unwrap(), "xfaas");
    }
}
