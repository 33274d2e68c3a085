//! Deployments that are being compiled, which takes as long as it takes and keeps nobody waiting: meanwhile others may be done.
//! Of two of one name the one that began later stays, whichever is compiled first; and what was undeployed meanwhile does not come back.

use super::{DeployError, Deployments};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Held by a deployment from its beginning to its end, however that comes.
pub(super) struct Ticket {
    name: String,
    /// Those that begin later have higher ones.
    pub(super) generation: u64,
    is_overtaken: AtomicBool,
}

/// The tickets that are held.
#[derive(Default)]
pub(super) struct UnderWay(Vec<Weak<Ticket>>);

impl Deployments {
    /// Gives the deployment its generation.
    pub(super) fn begin(&mut self, name: &str) -> Arc<Ticket> {
        let generation = self.store.next_generation();
        let ticket = Arc::new(Ticket { name: name.to_owned(), generation, is_overtaken: AtomicBool::new(false) });
        self.under_way.0.retain(|ticket| ticket.strong_count() > 0);
        self.under_way.0.push(Arc::downgrade(&ticket));
        ticket
    }

    /// The function of that name is now what something of this generation made of it: what began earlier comes too late.
    pub(super) fn overtake(&self, name: &str, generation: u64) {
        for ticket in self.under_way.0.iter().filter_map(Weak::upgrade) {
            if ticket.name == name && ticket.generation < generation {
                ticket.is_overtaken.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Ticket {
    /// To be asked with the deployments locked. Errors: a later change of the function is in force.
    pub(super) fn check(&self) -> Result<(), DeployError> {
        match self.is_overtaken.load(Ordering::Relaxed) {
            true => Err(DeployError::Overtaken { name: self.name.clone() }),
            false => Ok(()),
        }
    }
}
