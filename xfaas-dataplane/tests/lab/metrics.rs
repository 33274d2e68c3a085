//! The page `/metrics` as numbers.

use std::collections::BTreeMap;

use xfaas_common::drop_reason::DropReason;
use xfaas_common::map_layout::Verdict;

/// Samples by name and labels, as they stand in the page: `name{a="b",c="d"}`.
#[derive(Clone, Debug)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub fn parse(text: &str) -> Metrics {
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        });
        Metrics(samples.collect())
    }

    /// What was counted between `earlier` and these.
    pub fn since(&self, earlier: &Metrics) -> Metrics {
        let difference = |(name, value): (&String, &f64)| (name.clone(), value - earlier.0.get(name).copied().unwrap_or(0.0));
        Metrics(self.0.iter().map(difference).collect())
    }

    /// The sum of the family's samples that have all these labels.
    pub fn sum(&self, family: &str, labels: &[(&str, &str)]) -> u64 {
        let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let is_wanted = |name: &str| {
            let (own, rest) = name.split_once('{').unwrap_or((name, ""));
            own == family && wanted.iter().all(|label| rest.trim_end_matches('}').split(',').any(|own| own == label))
        };
        self.0.iter().filter(|(name, _)| is_wanted(name)).map(|(_, value)| *value).sum::<f64>() as u64
    }

    pub fn verdict(&self, verdict: Verdict) -> u64 {
        self.sum("xfaas_steering_verdicts_total", &[("verdict", verdict.name())])
    }

    /// Every verdict that is not zero.
    pub fn verdicts(&self) -> Vec<(Verdict, u64)> {
        Verdict::ALL.iter().map(|verdict| (*verdict, self.verdict(*verdict))).filter(|(_, count)| *count > 0).collect()
    }

    pub fn dropped_in_kernel(&self, reason: DropReason) -> u64 {
        self.sum("xfaas_drops_total", &[("place", "kernel"), ("reason", reason.name())])
    }

    pub fn dropped_in_user_space(&self, reason: DropReason) -> u64 {
        self.sum("xfaas_datagrams_dropped_total", &[("reason", reason.name())])
    }

    /// Datagrams dropped for this reason, wherever.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped_in_kernel(reason) + self.dropped_in_user_space(reason)
    }

    pub fn dropped_in_all(&self) -> u64 {
        DropReason::ALL.iter().map(|reason| self.dropped(*reason)).sum()
    }

    /// Packets the kernel programs judged before the stack saw them, each once. (`sk_reuseport` judges some of them again.)
    pub fn packets(&self) -> u64 {
        let again = [Verdict::ReuseportUdp, Verdict::ReuseportTcp, Verdict::ReuseportFallback];
        let passed: u64 = Verdict::ALL.iter().filter(|verdict| !again.contains(verdict)).map(|verdict| self.verdict(*verdict)).sum();
        passed + DropReason::ALL.iter().map(|reason| self.dropped_in_kernel(*reason)).sum::<u64>()
    }

    /// Requests of a function that a shard answered well.
    pub fn ran(&self, function: &str, shard: usize) -> u64 {
        self.sum("xfaas_requests_total", &[("function", function), ("outcome", "ok"), ("shard", &shard.to_string())])
    }

    pub fn steered(&self) -> u64 {
        self.sum("xfaas_steered_total", &[])
    }

    pub fn misrouted(&self) -> u64 {
        self.sum("xfaas_misrouted_total", &[])
    }

    pub fn moved(&self) -> u64 {
        self.sum("xfaas_moved_total", &[])
    }
}
