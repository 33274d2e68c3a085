//! `xfaas.toml` and the flags of `xfaas run`, read and checked once at start. CONTRACT.md section 4.
//! Used by `main.rs` and `cli`. The only place that reads the environment. Opens no socket and makes no directory.

mod checkpoints;
mod container;
mod file;
mod limits;
mod paths;

pub use self::container::{ContainerConfig, ContainerOptions, container};
pub use self::limits::Limits;
pub use self::paths::{AwsEnvironment, Environment};

use self::file::FileConfig;
use crate::control::{CatalogError, ConfiguredFunction, ManifestError, check_manifest, check_together};
use crate::durable::StorePlace;
use crate::steering::SteeringMode;
use crate::sys::affinity::allowed_cpus;
use crate::worker::Hint;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use xfaas_common::limits::{ADMIN_PORT_DEFAULT, CORES_MAX, FUNCTIONS_MAX, HTTP_PORT_DEFAULT, RPC_PORT_DEFAULT};
use xfaas_common::map_layout::SESSION_HEADER_DEFAULT;

/// The file looked for in the current directory when `--config` is not given.
pub const CONFIG_FILE_DEFAULT: &str = "xfaas.toml";
/// Bytes of a header's name in `listen.session_header`.
const SESSION_HEADER_BYTES_MAX: usize = 64;
/// What a request's framing, HTTP itself or xfaas already says in a header of that name, in a request or a reply.
const HEADERS_TAKEN: [&str; 16] = [
    "connection",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "keep-alive",
    "retry-after",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    "x-invocation-id",
    "x-session-token",
    "x-xfaas-core",
];
/// `IFNAMSIZ` of include/uapi/linux/if.h, less the NUL.
const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Everything `xfaas run` needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTP is served; the port is not 0.
    pub http: SocketAddr,
    /// Where datagrams are served; the address of `http` unless told otherwise.
    pub udp: SocketAddr,
    /// The admin API and metrics; port 0 lets the kernel choose.
    pub admin: SocketAddr,
    /// State access from secondary containers.
    pub rpc: SocketAddr,
    /// Name of the header that holds the session ID, in lower case.
    pub session_header: String,
    /// CPU numbers, one shard pinned to each; the position in the list is the `CoreIndex`. 1..=64 of them, none twice.
    pub cpus: Vec<u16>,
    /// Hot sessions move from busy cores to idle ones by themselves.
    pub rebalance: bool,
    /// Shards run in the real-time class: nothing ordinary takes their CPUs from them.
    pub realtime: bool,
    pub steering_mode: SteeringMode,
    /// The interface that packets arrive on, for XDP and TC.
    pub steering_iface: Option<String>,
    pub limits: Limits,
    /// Deployments and compiled code; absolute.
    pub state_dir: PathBuf,
    /// Session state, on tmpfs, so that it outlives the process; absolute.
    pub shared_memory_dir: PathBuf,
    pub checkpoints: StorePlace,
    pub functions: Vec<ConfiguredFunction>,
    /// `perf` is told the names of wasm functions, in `/tmp/perf-<pid>.map`.
    pub perf_map: bool,
}

impl Config {
    /// Where compiled code is kept, by content.
    pub fn compiled_dir(&self) -> PathBuf {
        self.state_dir.join("compiled")
    }

    /// Where acknowledged writes of apps with durability `sync` are kept.
    pub fn log_dir(&self) -> PathBuf {
        self.state_dir.join("log")
    }

    /// Where containers of this machine get descriptors of regions.
    pub fn region_socket(&self) -> PathBuf {
        self.state_dir.join("regions.sock")
    }
}

/// Flags of `xfaas run`: each overrides its key in the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub http: Option<SocketAddr>,
    pub udp: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub cpus: Option<Vec<u16>>,
    pub steering_mode: Option<SteeringMode>,
    pub steering_iface: Option<String>,
    pub state_dir: Option<PathBuf>,
    /// Only a flag: see `Config::perf_map`.
    pub perf_map: bool,
    /// A flag turns it on, never off.
    pub realtime: bool,
}

/// Why the configuration is refused. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: give its path with --config", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is no regular file: give the path of the configuration file with --config", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is not UTF-8 text at byte {at}: correct it", path.display())]
    NotText { path: PathBuf, at: usize },
    #[error("{} is not a valid configuration: correct the line below", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: toml::de::Error,
    },
    #[error("`{key}` is {value}: give a value in {low}..={high}")]
    OutOfRange { key: String, value: u64, low: u64, high: u64 },
    #[error("`{key}` has port 0: the shards share one port, so name it")]
    PortZero { key: &'static str },
    #[error("`{first}` and `{second}` are both {address}: give one of them another port")]
    SameAddress { first: &'static str, second: &'static str, address: SocketAddr },
    #[error("`listen.session_header` is {name:?}: give a header name of 1 to 64 letters, digits and `-`")]
    BadSessionHeader { name: String },
    #[error("`listen.session_header` is {name:?}, a header that has a meaning of its own: give another name")]
    SessionHeaderTaken { name: String },
    #[error("`shards.cpus` (--cpus) is empty: name at least one CPU, or leave the key out to use all of them")]
    NoCpus,
    #[error("`shards.cpus` (--cpus) names {count} CPUs: at most {CORES_MAX} shards are possible")]
    TooManyCpus { count: usize },
    #[error("`shards.cpus` (--cpus) names CPU {cpu} twice: each shard needs its own")]
    CpuTwice { cpu: u16 },
    #[error(
        "`shards.cpus` (--cpus) names CPU {cpu}, which does not exist, is offline, or is outside this process's affinity mask: choose from {allowed:?}"
    )]
    CpuNotAllowed { cpu: u16, allowed: Vec<u16> },
    #[error("`steering.mode` is {mode:?}: choose auto, xdp, reuseport, tc or off")]
    BadSteeringMode { mode: String },
    #[error("steering mode {mode} needs an interface: set `steering.iface` or give --iface")]
    NoInterface { mode: &'static str },
    #[error("`steering.iface` is {name:?}: give the name of a network interface (see `ip link`)")]
    BadInterface { name: String },
    #[error("there is no place for deployments: set `state_dir`, give --state-dir, or set HOME")]
    NoStateDir,
    #[error("`{key}` is {}: it cannot be made an absolute path", path.display())]
    BadPath {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{key}` is empty: give a path, or leave the key out")]
    EmptyPath { key: &'static str },
    #[error("`checkpoints.{key}` is for buckets: set `checkpoints.url` to s3://bucket/prefix, or leave it out")]
    NotABucket { key: &'static str },
    #[error("`checkpoints.url` is {url:?}: give s3://bucket/prefix or the path of a folder")]
    BadStore { url: String },
    #[error("`checkpoints.url` has the bucket {bucket:?}: give its name as it is in URLs, without spaces, `?`, `#` or `%`")]
    BadBucket { bucket: String },
    #[error(
        "`checkpoints.url` has the prefix {prefix:?}: give names with single `/` between them, none of them `.` or `..`, without control characters"
    )]
    BadPrefix { prefix: String },
    #[error(
        "{place} is {text:?}: give the URL of the store's server, as http://127.0.0.1:9000 or https://host, without spaces, `?` or `#`"
    )]
    BadEndpoint { place: &'static str, text: String },
    #[error("{place} has a user or a password in it: give them as `checkpoints.access_key_id` and `checkpoints.secret_access_key`")]
    EndpointWithUser { place: &'static str },
    #[error("{place} is {text:?}: give letters, digits, `-`, `_` and `.`, as in eu-central-1")]
    BadRegion { place: &'static str, text: String },
    #[error("{place} is empty, or has a space, a line's end or another character that no request can carry: copy it anew")]
    BadKey { place: &'static str },
    #[error("give both `checkpoints.access_key_id` and `checkpoints.secret_access_key`, or neither: then the environment's are used")]
    HalfAKey,
    #[error("function {name:?} of the configuration is refused: correct its [[function]] entry")]
    Function {
        name: String,
        #[source]
        source: ManifestError,
    },
    #[error("the functions of the configuration do not go together: correct their [[function]] entries")]
    Functions(#[source] CatalogError),
    #[error("there are two [[function]] entries named {name:?}: names are unique on a node, so rename one")]
    FunctionTwice { name: String },
    #[error("the configuration has {count} functions: at most {FUNCTIONS_MAX} are possible")]
    TooManyFunctions { count: usize },
    #[error("the module of function {name:?} is not at {}: correct `{key}`; a relative path starts at the configuration file", path.display())]
    NoModule { name: String, key: &'static str, path: PathBuf },
    #[error("function {name:?} has a `hook`, and the hint `{hint}`: leave one of them out")]
    HookUnused { name: String, hint: Hint },
}

/// Reads and checks the configuration.
/// Input: the file, or `None` for `xfaas.toml` in the current directory if it is there and built-in defaults otherwise; flags that override it.
/// Errors: the first thing that is wrong.
pub fn load(path: Option<&Path>, overrides: Overrides, environment: &Environment) -> Result<Config, ConfigError> {
    let default = Path::new(CONFIG_FILE_DEFAULT);
    let Some(path) = path.or_else(|| default.exists().then_some(default)) else {
        return resolve(FileConfig::default(), Path::new(""), overrides, environment);
    };
    let text = read_text(path)?;
    let file = toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
    resolve(file, path.parent().unwrap_or(Path::new("")), overrides, environment)
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    // A pipe may never end, and would not even open until someone writes to it.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(ConfigError::NotAFile { path: path.to_owned() });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| ConfigError::NotText { path: path.to_owned(), at: error.utf8_error().valid_up_to() })
}

/// File and flags put together; `base` is the file's directory, where relative paths start.
fn resolve(file: FileConfig, base: &Path, overrides: Overrides, environment: &Environment) -> Result<Config, ConfigError> {
    let listen = file.listen;
    let http = overrides.http.or(listen.http).unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, HTTP_PORT_DEFAULT)));
    let udp = overrides.udp.or(listen.udp).unwrap_or(http);
    let admin = overrides.admin.or(listen.admin).unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT_DEFAULT)));
    let rpc = listen.rpc.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, RPC_PORT_DEFAULT)));
    check_addresses(http, udp, admin, rpc)?;
    let session_header = session_header(listen.session_header)?;
    let cpus = check_cpus(overrides.cpus.or(file.shards.cpus), &allowed_cpus())?;
    let steering_mode = match (overrides.steering_mode, file.steering.mode) {
        (Some(mode), _) => mode,
        (None, Some(text)) => steering_mode(&text).ok_or(ConfigError::BadSteeringMode { mode: text })?,
        (None, None) => SteeringMode::Auto,
    };
    let steering_iface = check_interface(steering_mode, overrides.steering_iface.or(file.steering.iface))?;
    file.limits.check()?;
    let state_dir = match (overrides.state_dir, file.state_dir) {
        (Some(path), _) => paths::absolute("state_dir", path)?,
        (None, Some(path)) => paths::of_file("state_dir", base, path)?,
        (None, None) => environment.state_dir().ok_or(ConfigError::NoStateDir)?,
    };
    let shared_memory_dir = match file.shared_memory_dir {
        Some(path) => paths::of_file("shared_memory_dir", base, path)?,
        None => environment.shared_memory_dir(&state_dir),
    };
    let checkpoints = file.checkpoints.resolve(base, &state_dir, environment)?;
    let functions = resolve_functions(file.function, base, file.limits.memory_mib_max)?;
    Ok(Config {
        http,
        udp,
        admin,
        rpc,
        session_header,
        cpus,
        rebalance: file.shards.rebalance.unwrap_or(true),
        realtime: file.shards.realtime.unwrap_or(false) || overrides.realtime,
        steering_mode,
        steering_iface,
        limits: file.limits,
        state_dir,
        shared_memory_dir,
        checkpoints,
        perf_map: overrides.perf_map,
        functions,
    })
}

fn check_addresses(http: SocketAddr, udp: SocketAddr, admin: SocketAddr, rpc: SocketAddr) -> Result<(), ConfigError> {
    for (key, address) in [("listen.http", http), ("listen.udp", udp), ("listen.rpc", rpc)] {
        if address.port() == 0 {
            return Err(ConfigError::PortZero { key });
        }
    }
    let tcp = [("listen.http", http), ("listen.admin", admin), ("listen.rpc", rpc)];
    for (i, (first, address)) in tcp.iter().enumerate() {
        for (second, other) in &tcp[i + 1..] {
            let overlap = address.ip() == other.ip() || address.ip().is_unspecified() || other.ip().is_unspecified();
            if overlap && address.port() == other.port() {
                return Err(ConfigError::SameAddress { first, second, address: *other });
            }
        }
    }
    Ok(())
}

fn session_header(name: Option<String>) -> Result<String, ConfigError> {
    let name = name.unwrap_or_else(|| SESSION_HEADER_DEFAULT.to_owned());
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain || !(1..=SESSION_HEADER_BYTES_MAX).contains(&name.len()) {
        return Err(ConfigError::BadSessionHeader { name });
    }
    let name = name.to_ascii_lowercase();
    if HEADERS_TAKEN.contains(&name.as_str()) { Err(ConfigError::SessionHeaderTaken { name }) } else { Ok(name) }
}

fn check_cpus(cpus: Option<Vec<u16>>, allowed: &[u16]) -> Result<Vec<u16>, ConfigError> {
    let Some(cpus) = cpus else {
        // More CPUs than shards are possible: the first ones serve.
        return Ok(allowed.iter().copied().take(CORES_MAX).collect());
    };
    if cpus.is_empty() {
        return Err(ConfigError::NoCpus);
    }
    if cpus.len() > CORES_MAX {
        return Err(ConfigError::TooManyCpus { count: cpus.len() });
    }
    let mut seen = HashSet::new();
    for &cpu in &cpus {
        if !seen.insert(cpu) {
            return Err(ConfigError::CpuTwice { cpu });
        }
        if !allowed.contains(&cpu) {
            return Err(ConfigError::CpuNotAllowed { cpu, allowed: allowed.to_vec() });
        }
    }
    Ok(cpus)
}

/// The mode of that name, as in `steering.mode` and `--steering`.
pub fn steering_mode(name: &str) -> Option<SteeringMode> {
    Some(match name {
        "auto" => SteeringMode::Auto,
        "xdp" => SteeringMode::Xdp,
        "reuseport" => SteeringMode::Reuseport,
        "tc" => SteeringMode::Tc,
        "off" => SteeringMode::Off,
        _ => return None,
    })
}

fn check_interface(mode: SteeringMode, iface: Option<String>) -> Result<Option<String>, ConfigError> {
    let needed_by = match mode {
        SteeringMode::Xdp => Some("xdp"),
        SteeringMode::Tc => Some("tc"),
        SteeringMode::Auto | SteeringMode::Reuseport | SteeringMode::Off => None,
    };
    match (needed_by, iface) {
        (Some(mode), None) => Err(ConfigError::NoInterface { mode }),
        (_, Some(name)) if !is_interface_name(&name) => Err(ConfigError::BadInterface { name }),
        (_, iface) => Ok(iface),
    }
}

/// What the kernel takes as a name: `dev_valid_name` of net/core/dev.c.
fn is_interface_name(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    plain && (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len()) && name != "." && name != ".."
}

fn resolve_functions(entries: Vec<file::FunctionEntry>, base: &Path, memory_mib_max: u32) -> Result<Vec<ConfiguredFunction>, ConfigError> {
    if entries.len() > FUNCTIONS_MAX {
        return Err(ConfigError::TooManyFunctions { count: entries.len() });
    }
    let mut names = HashSet::new();
    let mut functions = Vec::with_capacity(entries.len());
    for entry in entries {
        let (mut manifest, wasm, hook) = entry.into_parts();
        check_manifest(&manifest, memory_mib_max).map_err(|source| ConfigError::Function { name: manifest.name.clone(), source })?;
        if !names.insert(manifest.name.clone()) {
            return Err(ConfigError::FunctionTwice { name: manifest.name });
        }
        if hook.is_some() && !manifest.rules.hint.set_hook() {
            return Err(ConfigError::HookUnused { name: manifest.name, hint: manifest.rules.hint });
        }
        let (wasm, hook) = (base.join(wasm), hook.map(|hook| base.join(hook)));
        let modules = [("wasm", Some(&wasm)), ("hook", hook.as_ref())];
        for (key, path) in modules.into_iter().filter_map(|(key, path)| Some((key, path?))) {
            if !path.is_file() {
                return Err(ConfigError::NoModule { name: manifest.name, key, path: path.clone() });
            }
        }
        functions.push(ConfiguredFunction { manifest, wasm, hook });
    }
    check_together(functions.iter().map(|function| &function.manifest)).map_err(ConfigError::Functions)?;
    Ok(functions)
}

#[cfg(test)]
mod tests;
