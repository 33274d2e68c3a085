//! Loads of every kind in turn on one node, for a build of it that records which ways requests take (`cargo xtask pgo`). Nothing is measured.
//! Each kind gets the same time, so that the node is laid out for all of them and not for the one that is measured elsewhere.

use crate::generator::{GeneratorError, LoadSpec, Progress, Transport, run_load};
use crate::load::Interrupt;
use crate::servers::{NodeFunction, NodePlace, Server, ServerError, XfaasFiles};
use std::net::SocketAddr;
use std::time::Duration;
use xfaas_dataplane::sys::clock::unix_ms;

const WARM_UP: Duration = Duration::from_millis(100);
/// Functions by name, module, and the lines of their entries.
const FUNCTIONS: [(&str, &str, &str); 9] = [
    ("echo", "echo", ""),
    ("counter-read", "counter-read", "app = \"counters\"\nread_only = true\n"),
    ("counter-rmw", "counter-rmw", "app = \"counters\"\n"),
    ("counter-rmw-linear", "counter-rmw-linear", "app = \"counters\"\n"),
    ("by-cookie", "counter-rmw", "hint = \"cookie:sid\"\n"),
    ("by-query", "counter-rmw", "hint = \"query:user\"\n"),
    ("by-path", "counter-rmw", "hint = \"path:0\"\n"),
    ("kept", "counter-rmw-linear", "durability = \"checkpoint\"\ncheckpoint_every_s = 1\n"),
    ("cart", "cart", ""),
];
/// What clients send besides.
const CLIENT_HEADERS: [&str; 3] = ["user-agent: curl/8.14.1", "accept: */*", "accept-encoding: gzip, br"];

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("{what}")]
    Load {
        what: &'static str,
        #[source]
        source: GeneratorError,
    },
    #[error("{what}: {fault}")]
    Run { what: &'static str, fault: String },
}

/// What is loaded, and for how long.
pub struct Training<'a> {
    pub xfaas: &'a XfaasFiles,
    pub server_cpu: u16,
    pub load_cpu: u16,
    /// Of each kind of load.
    pub seconds: f64,
    pub interrupt: &'a Interrupt,
}

/// One kind of load.
struct Lesson {
    what: &'static str,
    spec: LoadSpec,
}

impl Training<'_> {
    /// Starts a node and a container of it, and loads both. Output: the kinds of load that were run.
    /// Errors: a server that does not start, a wrong answer, a lost update.
    pub fn run(&self) -> Result<usize, TrainError> {
        let functions = FUNCTIONS.map(|(name, guest, keys)| NodeFunction { name, guest, keys });
        let place = NodePlace::new(self.xfaas, self.server_cpu, "", &functions)?;
        let node = place.start(self.interrupt)?;
        let lessons = [self.by_http(&node), self.by_hints(&node), self.by_datagrams(&node)].into_iter().flatten().collect();
        let mut count = self.teach(lessons)?;
        let container = place.start_container(self.server_cpu, self.interrupt)?;
        count += self.teach(self.of_container(container.address()))?;
        Ok(count)
    }

    fn teach(&self, lessons: Vec<Lesson>) -> Result<usize, TrainError> {
        let mut count = 0;
        for Lesson { what, mut spec } in lessons {
            if self.interrupt.is_set() {
                break;
            }
            // Sessions that were never used, so that counters begin at 0.
            spec.session_prefix = format!("{:x}-", unix_ms());
            let outcome = run_load(&spec, self.interrupt, Progress::Off).map_err(|source| TrainError::Load { what, source })?;
            if let Some(fault) = outcome.fault() {
                return Err(TrainError::Run { what, fault });
            }
            eprintln!("{what}: {} requests", outcome.good);
            count += 1;
        }
        Ok(count)
    }

    /// `functions`: each as `MixFunction` is read.
    fn lesson(&self, what: &'static str, address: SocketAddr, transport: Transport, functions: &[&str]) -> Lesson {
        let mut spec = LoadSpec::new(address, transport, String::new());
        spec.functions = functions.iter().map(|function| function.parse().expect("a function of the table above")).collect();
        (spec.reader, spec.cpus) = (None, vec![self.load_cpu]);
        (spec.warm_up, spec.measured) = (WARM_UP, Duration::from_secs_f64(self.seconds));
        Lesson { what, spec }
    }

    fn by_http(&self, node: &Server) -> Vec<Lesson> {
        let lesson = |what, functions: &[&str]| self.lesson(what, node.address(), Transport::Http, functions);
        let mut many = lesson("sessions that come and go", &["counter-rmw"]);
        many.spec.sessions = 50_000;
        let mut pipelined = lesson("requests pipelined", &["counter-rmw-linear", "counter-read"]);
        pipelined.spec.in_flight = 256;
        let mut bodies = lesson("bodies of 1 KiB", &["echo"]);
        bodies.spec.payload = vec![b'x'; 1_024];
        let mut cart = lesson("a cart", &["cart:1:any"]);
        (cart.spec.shape.method, cart.spec.shape.path) = (Some("POST".to_owned()), "/f/{function}/add?item=tea&n=1".to_owned());
        let mut clients = lesson("more headers", &["counter-rmw", "counter-read"]);
        clients.spec.shape.headers.extend(CLIENT_HEADERS.map(str::to_owned));
        let mut one = lesson("one session that many wait for", &["counter-rmw-linear"]);
        one.spec.sessions = 1;
        vec![
            lesson("echo", &["echo"]),
            lesson("reads", &["counter-read"]),
            lesson("read-modify-writes", &["counter-rmw"]),
            lesson("linear read-modify-writes", &["counter-rmw-linear"]),
            lesson("with checkpoints", &["kept:1:counter"]),
            many,
            pipelined,
            bodies,
            cart,
            clients,
            one,
        ]
    }

    fn by_hints(&self, node: &Server) -> Vec<Lesson> {
        let lesson = |what, function| self.lesson(what, node.address(), Transport::Http, &[function]);
        let mut cookie = lesson("sessions by cookie", "by-cookie:1:number");
        cookie.spec.shape.headers = vec!["cookie: theme=dark; sid={session}".to_owned()];
        let mut query = lesson("sessions by query", "by-query:1:number");
        (query.spec.shape.headers, query.spec.shape.path) = (Vec::new(), "/f/{function}?page=1&user={session}".to_owned());
        let mut path = lesson("sessions by path", "by-path:1:number");
        (path.spec.shape.headers, path.spec.shape.path) = (Vec::new(), "/f/{function}/{session}".to_owned());
        vec![cookie, query, path]
    }

    fn by_datagrams(&self, node: &Server) -> Vec<Lesson> {
        let lesson = |what, functions: &[&str]| self.lesson(what, node.address(), Transport::Datagram, functions);
        let mut gathered = lesson("datagrams of one client", &["counter-rmw", "counter-read"]);
        (gathered.spec.connections, gathered.spec.in_flight) = (1, 32);
        vec![lesson("datagrams", &["echo", "counter-read"]), lesson("read-modify-writes by datagrams", &["counter-rmw-linear"]), gathered]
    }

    fn of_container(&self, container: SocketAddr) -> Vec<Lesson> {
        let lesson = |what, functions: &[&str]| self.lesson(what, container, Transport::Http, functions);
        vec![lesson("reads in a container", &["counter-read"]), lesson("read-modify-writes in a container", &["counter-rmw-linear"])]
    }
}
