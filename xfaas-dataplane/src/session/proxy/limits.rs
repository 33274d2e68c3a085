//! Limits of a namespace that its app asks for: requests in a second. CONTRACT.md section 4. Called by `proxy` for apps with such a limit only.

use super::Proxy;
use crate::session::namespace::NamespaceId;

const SECOND_NS: u64 = 1_000_000_000;

impl Proxy {
    /// Counts a request. False: it is over the limit, and is not to run.
    pub(super) fn take_request(&mut self, id: NamespaceId, requests_per_s: u32, now_ns: u64) -> bool {
        let cost_ns = SECOND_NS / u64::from(requests_per_s);
        let is_taken = self.namespaces.get_mut(id).requests.take(cost_ns, SECOND_NS, now_ns);
        if !is_taken {
            self.stats.rate_limited += 1;
            self.namespaces.remove_if_empty(id);
        }
        is_taken
    }
}
