//! An S3-compatible object store on the local disk: SeaweedFS, its master, volumes, filer and S3 gateway in one process, as one runs it on one
//! machine. Started from its package; all threads on the caller's CPUs.

use super::process::{Server, ServerError, directory, free_addresses, installed};
use crate::load::{Interrupt, fetch};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In the folder of packages.
pub const OBJECTS_PROGRAM: &str = "seaweedfs/bin/weed";
/// Made when the store starts.
pub const BUCKET: &str = "xfaas-bench";
/// Parts of the program that leave a socket file in `/tmp`, whatever they are told.
const LEFTOVERS: [&str; 4] = ["master-grpc", "volume-grpc", "filer-grpc", "s3-grpc"];

/// A running store. Dropping it ends the process and removes what it kept.
pub struct ObjectServer {
    // Ends before its leftovers are removed: fields drop in this order.
    server: Server,
    _leftovers: Leftovers,
}

impl ObjectServer {
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Of the S3 gateway.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

struct Leftovers(Vec<PathBuf>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        // What is not there needs no removing.
        self.0.iter().for_each(|path| std::fs::remove_file(path).unwrap_or_default());
    }
}

/// SeaweedFS with the bucket `BUCKET`, its files in the directory for temporary files, without access control. `packages`: where peers are installed.
/// Runs where the calling thread may.
pub fn start_objects(packages: &Path, interrupt: &Interrupt) -> Result<ObjectServer, ServerError> {
    let binary = installed(packages, OBJECTS_PROGRAM)?;
    let directory = directory("seaweedfs")?;
    let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = free_addresses()?;
    let mut command = Command::new(binary);
    command.args(["server", "-filer", "-s3", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    // Volumes of 1 GiB: their files grow as they are used.
    command.args(["-master.volumeSizeLimitMB=1024", "-volume.max=16"]);
    let ip = s3.ip();
    command.args([format!("-ip={ip}"), format!("-ip.bind={ip}"), format!("-dir={}", directory.path().display())]);
    let sockets = [("filer", "filer.sock"), ("s3", "s3.sock")];
    command.args(sockets.map(|(part, name)| format!("-{part}.localSocket={}", directory.path().join(name).display())));
    let ports = [("s3", s3, s3_grpc), ("master", master, master_grpc), ("volume", volume, volume_grpc), ("filer", filer, filer_grpc)];
    for (part, http, grpc) in ports {
        command.args([format!("-{part}.port={}", http.port()), format!("-{part}.port.grpc={}", grpc.port())]);
    }
    let grpc = [master_grpc, volume_grpc, filer_grpc, s3_grpc];
    let leftovers = LEFTOVERS.iter().zip(grpc).map(|(part, address)| format!("/tmp/seaweedfs-{part}-{}.sock", address.port()).into());
    let _leftovers = Leftovers(leftovers.collect());
    let server = Server::start("seaweedfs", &mut command, s3, directory, interrupt, makes_bucket)?;
    Ok(ObjectServer { server, _leftovers })
}

/// True when the bucket is there and takes an object.
fn makes_bucket(address: SocketAddr) -> bool {
    let put = |path: &str, expected: &[u16]| {
        let request = format!("PUT /{path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n");
        fetch(address, request.as_bytes()).is_ok_and(|fetched| expected.contains(&fetched.status))
    };
    // 409: an earlier look made it.
    put(BUCKET, &[200, 409]) && put(&format!("{BUCKET}/is-it-there-yet"), &[200])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_not_installed_is_named() {
        let folder = directory("peers").unwrap();
        let error = start_objects(folder.path(), &Interrupt::default()).err().unwrap();
        assert!(matches!(&error, ServerError::Missing { path, .. } if path.ends_with(OBJECTS_PROGRAM)), "{error}");
    }
}
