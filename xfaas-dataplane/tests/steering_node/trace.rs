//! While somebody traces, the kernel programs note when they see packets, so that a request's time begins on the wire.

use serde_json::Value;

use crate::lab::{Client, Datagram, Http, Lab, PLAIN, PORT, get, random_sessions};

/// One request in so many is in the sample: of these some are, on either way.
const REQUESTS: usize = 2_000;

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_traced_request_has_a_time_on_the_network() {
    for mode in ["xdp", "tc"] {
        let lab = Lab::new();
        let node = lab.start(mode);
        let session = random_sessions(71, 1)[0];
        // Opened before anybody traces: its port is asked for then.
        let mut connection = lab.on_client(|| Http::connect(PLAIN[0].address(PORT)));
        let client = Client::connect(&lab, &PLAIN[0]);
        connection.echo(session.as_str(), b"hello");
        let reply = std::thread::scope(|scope| {
            let tracing = scope.spawn(|| lab.on_server(|| get("127.0.0.1:9070", "/v1/trace?seconds=3")).unwrap());
            let mut id = 0;
            while !tracing.is_finished() {
                connection.echo(session.as_str(), b"hello");
                client.ask(&Datagram::new("echo", session, id, "hello"));
                id += 1;
            }
            assert!(id as usize * 2 >= REQUESTS, "only {id} rounds in three seconds");
            tracing.join().unwrap()
        });
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let trace: Value = serde_json::from_str(body).unwrap();
        let entries = trace["shards"].as_array().unwrap().iter().flat_map(|shard| shard["sample"].as_array().unwrap());
        for is_datagram in [false, true] {
            let of_kind: Vec<f64> = entries
                .clone()
                .filter(|entry| entry["is_datagram"] == is_datagram)
                .map(|entry| entry["network_us"].as_f64().unwrap())
                .collect();
            let stamped = of_kind.iter().filter(|time| **time > 0.0).count();
            assert!(
                !of_kind.is_empty() && stamped * 2 > of_kind.len(),
                "{mode}, datagrams {is_datagram}: {stamped} of {} have a time",
                of_kind.len()
            );
            assert!(of_kind.iter().all(|time| *time < 1e6));
        }
        drop(node);
    }
}
