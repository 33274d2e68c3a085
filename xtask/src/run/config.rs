//! The `xfaas.toml` of a demo: where to listen, how to steer, and the sample functions.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Admin API and metrics, on the server's loopback.
pub const ADMIN_ADDRESS: &str = "127.0.0.1:9070";
const RPC_ADDRESS: &str = "127.0.0.1:9071";

/// Name, app and read-only flag of each sample. The counters share an app, so they show one value.
const SAMPLES: [(&str, &str, bool); 6] = [
    ("echo", "echo", false),
    ("counter-read", "counter", true),
    ("counter-rmw", "counter", false),
    ("counter-rmw-linear", "counter", false),
    ("counter-c", "counter", false),
    ("cart", "cart", false),
];

/// What differs between demos.
pub struct Config<'a> {
    /// Address and port of HTTP and datagrams.
    pub listen: String,
    pub state: PathBuf,
    /// `None` leaves the choice to xfaas.
    pub shared_memory: Option<PathBuf>,
    pub cpus: &'a [u16],
    pub steering: &'a str,
    pub iface: Option<&'a str>,
    /// The folder of `<name>.wasm`.
    pub guests: PathBuf,
}

impl Config<'_> {
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# Made by `cargo xtask run`.\n");
        let mut line = |line: String| writeln!(text, "{line}").expect("a String takes any text");
        line(format!("state_dir = {}", quoted_path(&self.state)));
        if let Some(folder) = &self.shared_memory {
            line(format!("shared_memory_dir = {}", quoted_path(folder)));
        }
        line("\n[listen]".into());
        for (key, address) in [("http", self.listen.as_str()), ("udp", &self.listen), ("admin", ADMIN_ADDRESS), ("rpc", RPC_ADDRESS)] {
            line(format!("{key} = {}", quoted(address)));
        }
        line(format!("\n[shards]\ncpus = {:?}", self.cpus));
        line(format!("\n[steering]\nmode = {}", quoted(self.steering)));
        if let Some(iface) = self.iface {
            line(format!("iface = {}", quoted(iface)));
        }
        for (name, app, read_only) in SAMPLES {
            let wasm = quoted_path(&self.guests.join(format!("{name}.wasm")));
            line(format!("\n[[function]]\nname = {}\nwasm = {wasm}\napp = {}", quoted(name), quoted(app)));
            if read_only {
                line("read_only = true".into());
            }
        }
        text
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_as_it_was_meant() {
        let config = Config {
            listen: "[::]:8080".into(),
            state: "/a \"strange\" folder".into(),
            shared_memory: Some("/dev/shm/x".into()),
            cpus: &[0, 1],
            steering: "xdp",
            iface: Some("veth0"),
            guests: "/guests".into(),
        };
        let table: toml::Table = config.to_toml().parse().expect("it is TOML");
        assert_eq!(table["state_dir"].as_str(), Some("/a \"strange\" folder"));
        assert_eq!(table["shared_memory_dir"].as_str(), Some("/dev/shm/x"));
        assert_eq!(table["listen"]["udp"].as_str(), Some("[::]:8080"));
        assert_eq!(table["shards"]["cpus"].as_array().map(Vec::len), Some(2));
        assert_eq!(table["steering"]["iface"].as_str(), Some("veth0"));
        let functions = table["function"].as_array().expect("a list");
        assert_eq!(functions.len(), SAMPLES.len());
        assert_eq!(functions[1]["read_only"].as_bool(), Some(true));
        assert_eq!(functions[0]["wasm"].as_str(), Some("/guests/echo.wasm"));
    }
}
