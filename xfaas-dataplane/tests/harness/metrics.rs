//! `/metrics`, read strictly enough to trust a sum.

use super::http::{Client, request};
use std::net::SocketAddr;

/// One reading of all samples.
pub struct Metrics {
    samples: Vec<(String, f64)>,
}

impl Metrics {
    pub fn read(admin: SocketAddr) -> Metrics {
        let mut client = Client::connect(admin);
        client.send(&request("GET", "/metrics", &[("connection", "close")], b""));
        let reply = client.reply();
        assert_eq!(reply.status, 200);
        let text = String::from_utf8(reply.body).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}")))
        });
        Metrics { samples: samples.collect() }
    }

    /// The sum over all series of `name` that have every label of `labels`. Panics when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &str| {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            own == name && labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
        };
        let found: Vec<f64> = self.samples.iter().filter(|(series, _)| has(series)).map(|(_, value)| *value).collect();
        assert!(!found.is_empty(), "no series {name} with {labels:?}");
        found.iter().sum()
    }

    /// Invocations of a function that ended with `outcome`.
    pub fn requests(&self, function: &str, outcome: &str) -> f64 {
        self.sum("xfaas_requests_total", &[("function", function), ("outcome", outcome)])
    }

    /// Invocations of a function, however they ended.
    pub fn runs(&self, function: &str) -> f64 {
        self.sum("xfaas_requests_total", &[("function", function)])
    }
}
