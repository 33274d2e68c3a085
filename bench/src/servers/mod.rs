//! The processes under test: started on one CPU with files in a directory of their own, ended and removed with their guard, and ended with the
//! thread that started them where nobody is left to do so.

mod baseline;
mod contained;
mod echo;
mod nginx;
mod node;
mod objects;
mod parent;
mod process;
mod redis;
mod restate;
mod wasmtime;
mod workerd;
mod xfaas;

pub use self::baseline::{BaselineStore, start_baseline, start_contained_baseline};
pub use self::contained::{Contained, ContainedStart};
pub use self::echo::start_limit;
pub use self::nginx::start_nginx;
pub use self::node::{NodeFunction, NodePlace};
pub use self::objects::{BUCKET, OBJECTS_PROGRAM, ObjectServer, start_objects};
pub use self::process::{Server, ServerError, exit_code, print_error, scratch_directory};
pub use self::redis::{start_redis, start_redis_always, start_redis_with_socket};
pub use self::restate::start_restate;
pub use self::wasmtime::start_wasmtime;
pub use self::workerd::start_workerd;
pub use self::xfaas::{
    FUNCTIONS, RPC_APP, RPC_FUNCTION, Steered, XfaasFiles, start_xfaas, start_xfaas_in, start_xfaas_steered, start_xfaas_sync,
};
