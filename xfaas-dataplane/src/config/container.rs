//! What `xfaas container` is told, checked. A container has no configuration file: functions and their limits come from its primary.

use super::{ConfigError, Environment, Limits, check_cpus, paths};
use crate::sys::affinity::allowed_cpus;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Folder of a container's compiled code within the default state directory.
const CONTAINER_FOLDER: &str = "container";

/// The flags of `xfaas container`.
#[derive(Clone, Debug)]
pub struct ContainerOptions {
    /// `HOST:PORT` of the primary's RPC port.
    pub join: String,
    pub listen: SocketAddr,
    /// `None` lets the kernel choose a port.
    pub admin: Option<SocketAddr>,
    pub cpus: Option<Vec<u16>>,
    /// Regions are never mapped: all reads go by RPC.
    pub no_map: bool,
    /// Instead of the path that the primary tells.
    pub region_socket: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
}

/// Everything `xfaas container` needs to know, checked.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    pub join: String,
    /// HTTP and datagrams; the port is not 0.
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub cpus: Vec<u16>,
    pub no_map: bool,
    pub region_socket: Option<PathBuf>,
    /// Compiled code is kept here, nothing else; absolute. Containers may share it.
    pub state_dir: PathBuf,
    pub limits: Limits,
}

/// Checks the flags. Errors: the first thing that is wrong.
pub fn container(options: ContainerOptions, environment: &Environment) -> Result<ContainerConfig, ConfigError> {
    let ContainerOptions { join, listen, admin, cpus, no_map, region_socket, state_dir } = options;
    if listen.port() == 0 {
        return Err(ConfigError::PortZero { key: "--listen" });
    }
    let state_dir = match state_dir {
        Some(path) => paths::absolute("state_dir", path)?,
        None => environment.state_dir().ok_or(ConfigError::NoStateDir)?.join(CONTAINER_FOLDER),
    };
    let admin = admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    let cpus = check_cpus(cpus, &allowed_cpus())?;
    Ok(ContainerConfig { join, listen, admin, cpus, no_map, region_socket, state_dir, limits: Limits::default() })
}
