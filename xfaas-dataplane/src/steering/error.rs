//! What can go wrong with steering. Returned by every function of this folder.

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why steering did not start, or a map could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    #[error("steering needs {missing}: run as root, give the binary these capabilities, or run with `--steering off`")]
    MissingRights { missing: String },
    #[error("this binary holds no kernel programs: build them with `cargo xtask build`, or run with `--steering off`")]
    NoObject,
    #[error("steering mode {mode} needs an interface: name it with `--iface`")]
    NoInterface { mode: &'static str },
    #[error("interface {iface:?} does not exist: see `ip link`")]
    UnknownInterface { iface: String },
    #[error(
        "interface {iface} already has an XDP program: stop what it belongs to (`bpftool net` names the program, `bpftool link` who holds it); \
         where no link holds it, `ip link set dev {iface} xdp off` takes it off (a generic one: `xdpgeneric off`); or choose another mode"
    )]
    InterfaceTaken { iface: String },
    #[error("CPU {cpu} is too large a number for steering, which takes 0..{limit}")]
    CpuTooLarge { cpu: u16, limit: u32 },
    #[error("load the kernel programs")]
    Load(#[source] EbpfError),
    #[error(
        "the kernel programs are of another build than this binary (tag {found:016x}, wanted {wanted:016x}): build both with `cargo xtask build`, or run with `--steering off`"
    )]
    OtherBuild { found: u64, wanted: u64 },
    #[error("the kernel programs are no object file, or have no section {section}: build them with `cargo xtask build`")]
    NoTag { section: &'static str },
    #[error("the kernel programs have no {kind} {name}: they are of another version")]
    Missing { kind: &'static str, name: &'static str },
    #[error("load program {program}")]
    Program {
        program: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("attach program {program} to {place}")]
    Attach {
        program: &'static str,
        place: String,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("program {program} on {place} would outlive this process: the kernel has no links for it")]
    NotHeld { program: &'static str, place: String },
    #[error("map {map}")]
    Map {
        map: &'static str,
        #[source]
        source: MapError,
    },
    #[error("duplicate the descriptor of map {map}")]
    Duplicate {
        map: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl SteeringError {
    pub(super) fn program(program: &'static str) -> impl Fn(ProgramError) -> SteeringError {
        move |source| SteeringError::Program { program, source: Box::new(source) }
    }

    pub(super) fn attach(program: &'static str, place: &str) -> impl Fn(ProgramError) -> SteeringError {
        move |source| SteeringError::Attach { program, place: place.to_owned(), source: Box::new(source) }
    }

    pub(super) fn map(map: &'static str) -> impl Fn(MapError) -> SteeringError {
        move |source| SteeringError::Map { map, source }
    }

    /// The error and its causes in one line.
    pub(super) fn in_one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            // The verifier's log has many lines; the first says what it was about.
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            if !line.ends_with(first) {
                line.push_str(": ");
                line.push_str(first);
            }
            cause = error.source();
        }
        line
    }
}
