//! The command line: `xfaas run|container|deploy|undeploy|functions|sessions|token|invoke|stats|top|trace|doctor`. CONTRACT.md section 4.
//! Called by `main.rs`, which brings the server. Results go to stdout, errors to stderr; exit codes: 0 done, 1 failed, 2 wrong usage.

mod args;
mod datagram;
mod invoke;
mod show;
mod top;
mod trace;

use self::args::{Arguments, Command, ConfigArguments, DeployArguments, SessionCommand, SessionsArguments, TokenArguments};
use crate::config::{self, Config, ConfigError, ContainerConfig, Environment};
use crate::control::{
    self, AdminClient, AliasInfo, AliasName, Check, ClientError, DoctorOptions, MoveRequest, SessionsQuery, TokenRequest,
};
use crate::ebpf_object::ebpf_object;
use crate::worker::attach_hook;
use clap::Parser;
use serde::Serialize;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xfaas_common::limits::MODULE_BYTES_MAX;

const EXIT_DONE: u8 = 0;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const ADMIN_ADDRESS_DEFAULT: &str = "127.0.0.1:9070";

/// Why a command failed. Every text says what to do.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// Wrong usage that only the command itself can see.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read {}: check the path", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} has {bytes} bytes: a module, with the hook that it brings, has at most {MODULE_BYTES_MAX} ({} MiB); strip its debug information", path.display(), MODULE_BYTES_MAX >> 20)]
    ModuleTooLarge { path: PathBuf, bytes: u64 },
    #[error("{0}")]
    Invoke(String),
    #[error("{0}")]
    Serve(String),
    #[error("cannot watch the node: the system gave no thread or signal handler")]
    Watch(#[source] std::io::Error),
    #[error("cannot write the result")]
    Write(#[from] std::io::Error),
}

/// What this process is to be.
pub enum Role {
    Node(Box<Config>),
    Container(Box<ContainerConfig>),
}

/// What `main.rs` brings to the command line.
pub struct Hooks<S, P> {
    /// Runs a node or a container until it is told to stop: `FnOnce(Role) -> Result<(), impl Display>`; the error is shown with `{:#}`.
    pub serve: S,
    /// Further checks of `xfaas doctor`: `FnOnce(&Config) -> Vec<Check>`.
    pub probe: P,
}

/// Runs the command that `arguments` (the program's name first) ask for.
pub fn run<S, P, E>(arguments: impl IntoIterator<Item = OsString>, hooks: Hooks<S, P>) -> ExitCode
where
    S: FnOnce(Role) -> Result<(), E>,
    P: FnOnce(&Config) -> Vec<Check>,
    E: Display,
{
    let is_terminal = std::io::stdout().is_terminal();
    let (mut out, mut errors) = (std::io::stdout().lock(), std::io::stderr());
    let mut terminal = Terminal { out: &mut out, errors: &mut errors, is_terminal, is_json: false };
    run_with(arguments, hooks, &Environment::read(), &mut terminal).into()
}

fn run_with<S, P, E>(
    arguments: impl IntoIterator<Item = OsString>,
    hooks: Hooks<S, P>,
    environment: &Environment,
    terminal: &mut Terminal<'_>,
) -> u8
where
    S: FnOnce(Role) -> Result<(), E>,
    P: FnOnce(&Config) -> Vec<Check>,
    E: Display,
{
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers, the rest are mistakes; if neither can be shown, the code still tells.
            let target: &mut dyn Write = if error.use_stderr() { terminal.errors } else { terminal.out };
            write!(target, "{}", error.render()).ok();
            return if error.use_stderr() { EXIT_USAGE } else { EXIT_DONE };
        }
    };
    terminal.is_json = arguments.json;
    match dispatch(arguments, hooks, environment, terminal).and_then(|code| terminal.out.flush().map(|()| code).map_err(CliError::from)) {
        Ok(code) => code,
        // Whoever reads our output has seen enough, as `head` does: nobody is left to be told.
        Err(CliError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => EXIT_FAILED,
        Err(error) => {
            terminal.complain(&control::describe(&error));
            if matches!(error, CliError::Usage(_)) { EXIT_USAGE } else { EXIT_FAILED }
        }
    }
}

/// Where results and errors go.
struct Terminal<'a> {
    out: &'a mut dyn Write,
    errors: &'a mut dyn Write,
    /// Somebody looks at `out` as it comes.
    is_terminal: bool,
    is_json: bool,
}

impl Terminal<'_> {
    /// One JSON document, or the text for people.
    fn show(&mut self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), CliError> {
        if self.is_json {
            let document = serde_json::to_string_pretty(document).expect("maps with text keys become JSON");
            writeln!(self.out, "{document}")?;
        } else {
            self.out.write_all(text().as_bytes())?;
        }
        Ok(())
    }

    /// A line on stderr; if that is closed, the exit code tells.
    fn complain(&mut self, text: &str) {
        writeln!(self.errors, "xfaas: {text}").ok();
    }
}

fn dispatch<S, P, E>(
    arguments: Arguments,
    hooks: Hooks<S, P>,
    environment: &Environment,
    terminal: &mut Terminal<'_>,
) -> Result<u8, CliError>
where
    S: FnOnce(Role) -> Result<(), E>,
    P: FnOnce(&Config) -> Vec<Check>,
    E: Display,
{
    let admin = arguments.admin;
    let client = || admin_to_connect(admin.as_deref());
    match arguments.command {
        Command::Run {
            settings,
            check,
            #[cfg(debug_assertions)]
            test_broken_lock,
        } => {
            let config = load(settings, admin.as_deref(), environment)?;
            #[cfg(debug_assertions)]
            if test_broken_lock {
                crate::state::break_locks();
            }
            if check {
                let text = || format!("the configuration is good: {} shards, {} functions\n", config.cpus.len(), config.functions.len());
                terminal
                    .show(&serde_json::json!({ "ok": true, "shards": config.cpus.len(), "functions": config.functions.len() }), text)?;
                return Ok(EXIT_DONE);
            }
            (hooks.serve)(Role::Node(Box::new(config))).map_err(|error| CliError::Serve(format!("{error:#}")))?;
            Ok(EXIT_DONE)
        }
        Command::Container(container) => {
            let admin = admin_to_listen(admin.as_deref())?;
            let config = config::container(container.into_options(admin), environment)?;
            (hooks.serve)(Role::Container(Box::new(config))).map_err(|error| CliError::Serve(format!("{error:#}")))?;
            Ok(EXIT_DONE)
        }
        Command::Doctor { settings } => {
            let config = load(settings, admin.as_deref(), environment)?;
            doctor(&config, (hooks.probe)(&config), terminal)
        }
        Command::Deploy(deploy) => run_deploy(&client()?, deploy, terminal),
        Command::Undeploy { name } => run_undeploy(&client()?, &name, terminal),
        Command::Functions => {
            let reply = client()?.functions()?;
            terminal.show(&reply, || show::functions(&reply))?;
            Ok(EXIT_DONE)
        }
        Command::Sessions(SessionsArguments { command: Some(command), .. }) => run_session(&client()?, command, terminal),
        Command::Sessions(SessionsArguments { app, prefix, limit, command: None }) => {
            let reply = client()?.sessions(&SessionsQuery { app, prefix, limit: usize::from(limit) })?;
            terminal.show(&reply, || show::sessions(&reply))?;
            Ok(EXIT_DONE)
        }
        Command::Stats => {
            let reply = client()?.stats()?;
            terminal.show(&reply, || show::stats(&reply))?;
            Ok(EXIT_DONE)
        }
        Command::Top(arguments) => top::run(client()?, &arguments, terminal),
        Command::Trace { tail: _, seconds } => run_trace(&client()?, seconds, terminal),
        Command::Token(arguments) => run_token(&client()?, arguments, terminal),
        Command::Invoke(arguments) => invoke::run(&arguments, terminal),
    }
}

fn run_token(client: &AdminClient, arguments: TokenArguments, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    let TokenArguments { app, session, ttl_s } = arguments;
    let reply = client.token(&TokenRequest { app, session: session.to_string(), ttl_s })?;
    terminal.show(&reply, || format!("{}\n", reply.token))?;
    Ok(EXIT_DONE)
}

fn run_trace(client: &AdminClient, seconds: u32, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    if !terminal.is_json {
        terminal.complain(&format!("looking for {seconds} s"));
    }
    let reply = client.trace(seconds)?;
    terminal.show(&reply, || trace::report(&reply))?;
    Ok(EXIT_DONE)
}

fn run_undeploy(client: &AdminClient, name: &str, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    let reply = client.undeploy(name)?;
    terminal.show(&reply, || format!("undeployed {}\n", reply.name))?;
    reply.note.iter().for_each(|note| terminal.complain(note));
    Ok(EXIT_DONE)
}

/// The configuration with the flags put over it; `--admin` is an address here, not one to connect to.
fn load(settings: ConfigArguments, admin: Option<&str>, environment: &Environment) -> Result<Config, CliError> {
    let (path, overrides) = settings.into_overrides(admin_to_listen(admin)?);
    Ok(config::load(path.as_deref(), overrides, environment)?)
}

fn admin_to_connect(admin: Option<&str>) -> Result<AdminClient, CliError> {
    let address = admin.unwrap_or(ADMIN_ADDRESS_DEFAULT);
    match args::host_and_port(address) {
        Ok(address) => Ok(AdminClient::new(&address)),
        Err(reason) => Err(CliError::Usage(format!("--admin is {address:?}, and {reason}: give HOST:PORT"))),
    }
}

fn admin_to_listen(admin: Option<&str>) -> Result<Option<SocketAddr>, CliError> {
    admin.map(|text| text.parse().map_err(|_| CliError::Usage(format!("--admin is {text:?}: give IP:PORT to listen on")))).transpose()
}

fn run_deploy(client: &AdminClient, deploy: DeployArguments, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    let mut wasm = read_module(&deploy.file)?;
    let (name, file, hook) = (deploy.name.clone(), deploy.file.clone(), deploy.hook.clone());
    let mut flags = deploy.into_flags();
    if let Some(hook) = hook {
        let mut hint = flags.hint.unwrap_or_default();
        if !hint.set_hook() {
            return Err(CliError::Usage(format!("--hook brings a hook, and --hint {hint} says otherwise: leave one of them out")));
        }
        flags.hint = Some(hint);
        wasm = attach_hook(&wasm, &read_module(&hook)?);
        check_module_bytes(&file, wasm.len() as u64)?;
    }
    let info = client.deploy(&name, &flags, &wasm)?;
    terminal.show(&info, || format!("deployed {name} (app {}, generation {})\n", info.manifest.app, info.generation))?;
    info.note.iter().for_each(|note| terminal.complain(note));
    Ok(EXIT_DONE)
}

/// Its size is looked at first: the server closes the connection of one that is too large, and its words may be lost with that.
fn read_module(path: &Path) -> Result<Vec<u8>, CliError> {
    let failed = |source| CliError::Read { path: path.to_owned(), source };
    check_module_bytes(path, std::fs::metadata(path).map_err(failed)?.len())?;
    std::fs::read(path).map_err(failed)
}

fn check_module_bytes(path: &Path, bytes: u64) -> Result<(), CliError> {
    if bytes > MODULE_BYTES_MAX as u64 { Err(CliError::ModuleTooLarge { path: path.to_owned(), bytes }) } else { Ok(()) }
}

fn run_session(client: &AdminClient, command: SessionCommand, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    match command {
        SessionCommand::Map { key, session, app } => {
            let alias = client.map(&AliasInfo { app, key: key.to_string(), session: session.to_string() })?;
            terminal.show(&alias, || format!("{} means {}\n", alias.key, alias.session))?;
        }
        SessionCommand::Unmap { key, app } => {
            let alias = client.unmap(&AliasName { app, key: key.to_string() })?;
            terminal.show(&alias, || format!("{} means itself\n", alias.key))?;
        }
        SessionCommand::Move { app, session, core } => {
            let reply = client.move_session(&MoveRequest { app, session: session.to_string(), core })?;
            terminal.show(&reply, || {
                format!("{} is on core {} now ({} keys, {} bytes)\n", reply.session, reply.to, reply.keys, reply.state_bytes)
            })?;
        }
        SessionCommand::Aliases => {
            let reply = client.aliases()?;
            terminal.show(&reply, || show::aliases(&reply))?;
        }
    }
    Ok(EXIT_DONE)
}

fn doctor(config: &Config, probes: Vec<Check>, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    let options = DoctorOptions {
        http: config.http,
        udp: config.udp,
        admin: config.admin,
        rpc: config.rpc,
        realtime: config.realtime,
        steering_mode: config.steering_mode,
        steering_iface: config.steering_iface.as_deref(),
        state_dir: &config.state_dir,
        shared_memory_dir: &config.shared_memory_dir,
        connections_max: config.limits.connections_max.into(),
        ebpf_object: ebpf_object(),
        is_running: AdminClient::new(&config.admin.to_string()).is_alive(),
    };
    let mut checks = control::examine(&options);
    checks.extend(probes);
    let ok = control::all_good(&checks);
    terminal.show(&serde_json::json!({ "ok": ok, "checks": checks }), || show::checks(&checks))?;
    Ok(if ok { EXIT_DONE } else { EXIT_FAILED })
}

#[cfg(test)]
mod tests;
