//! Stored functions that the shards did not take at a start, for want of room for their log or of time: nothing is wrong with them, so they are tried again
//! until they run.

use super::{Deployer, Deployments};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const TRY_EVERY: Duration = Duration::from_secs(1);

impl Deployer {
    /// Starts a thread that tries, if there is anything to try. It ends when there is not, or when nobody else has the deployer.
    /// Errors: no thread can be started.
    pub fn keep_trying(self: &Arc<Deployer>) -> std::io::Result<()> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let deployer = Arc::downgrade(self);
        let work = move || {
            loop {
                std::thread::sleep(TRY_EVERY);
                let Some(deployer) = deployer.upgrade() else { return };
                if deployer.try_again() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("xfaas-retry".to_owned()).spawn(work).map(drop)
    }

    /// True when nothing waits any more, or nothing is to come.
    fn try_again(&self) -> bool {
        let mut deployments = self.lock();
        let waiting = std::mem::take(&mut deployments.waiting);
        for stored in waiting {
            let name = &stored.manifest.name;
            let is_wanted = !deployments.running.contains_key(name) && deployments.store.contains(name);
            if is_wanted && self.check_goes_on(name).is_ok() && self.bring_up_stored(&mut deployments, &stored).is_ok() {
                tracing::info!(name, "a stored function runs now");
                self.offer(&deployments);
                self.forget_unused_code(&deployments);
            }
        }
        self.note_waiting(&deployments);
        deployments.waiting.is_empty()
    }

    pub(super) fn note_waiting(&self, deployments: &Deployments) {
        self.waiting.store(deployments.waiting.len(), Ordering::Release);
    }
}
