//! What control asks of a shard, done between two turns.

use super::mailbox::ShardCommand;
use super::turn::Shard;
use crate::state::RegionReader;
use crate::worker::Function;
use std::sync::Arc;

/// Namespaces of which the balancer hears.
const HOTTEST: usize = 16;

impl Shard {
    pub(super) fn take_commands(&mut self) {
        while let Some(command) = self.door.commands.pop() {
            // An asker that gave up has dropped its end: then the answer has no reader, and that is all.
            match command {
                ShardCommand::Install(function, answer) => drop(answer.try_send(self.install(function))),
                ShardCommand::Readers(app, readers, answer) => {
                    self.set_readers(app, &readers);
                    drop(answer.try_send(Ok(())));
                }
                ShardCommand::Remove(index, answer) => {
                    self.remove(index);
                    drop(answer.try_send(Ok(())));
                }
                ShardCommand::Primary(command) => self.on_primary_command(command),
                ShardCommand::Sessions(query, answer) => self.begin_listing(query, answer),
                ShardCommand::Alias(changes, answer) => {
                    changes.iter().for_each(|change| self.aliases.apply(change));
                    answer.try_send(()).ok();
                }
                ShardCommand::Move(order, claim, answer) => self.begin_move(order, claim, answer),
                ShardCommand::Containers(answer) => drop(answer.try_send(self.rpc.greeted())),
                ShardCommand::Hottest(answer) => drop(answer.try_send(self.proxy.take_hottest(HOTTEST, self.now_ns))),
                ShardCommand::Offer(offer, answer) => {
                    self.offer_to_containers(offer);
                    answer.try_send(()).ok();
                }
                ShardCommand::Checkpoints(door) => (self.lifecycle.door, self.lifecycle.is_listing) = (Some(*door), true),
                ShardCommand::Trace(is_on) => self.set_traced(is_on),
                ShardCommand::Serve => self.is_serving = true,
                ShardCommand::Drain => {
                    self.draining_since_ns = self.draining_since_ns.or(Some(self.now_ns));
                    self.proxy.keep_calls();
                }
            }
        }
    }

    /// Errors: in words. The function's former version, if there is one, goes on then.
    fn install(&mut self, function: Arc<Function>) -> Result<Option<RegionReader>, String> {
        let (index, app, hash) = (function.index, function.app, function.hash);
        let name = function.manifest.name.as_bytes().into();
        let manifest = Arc::clone(&function);
        let former = self.proxy.function(index).cloned();
        self.proxy.install(function).map_err(|error| error_chain(&error))?;
        if let Err(error) = self.set_durability(app, &manifest.manifest) {
            // Its requests come before control has undone the deployment on all shards, and find it by its name.
            let is_back = former.is_some_and(|former| self.proxy.install(former).is_ok());
            if !is_back {
                self.remove(index);
            }
            return Err(error_chain(&error));
        }
        self.set_sleep_rules(app, &manifest.manifest);
        self.by_name.insert(name, index);
        self.by_hash.insert(hash.0, index);
        Ok(self.proxy.reader(app))
    }

    /// The names go first: they stand for functions in service only.
    fn remove(&mut self, index: u16) {
        self.by_name.retain(|_, function| *function != index);
        self.by_hash.retain(|_, function| *function != index);
        self.proxy.remove(index);
    }

    fn set_readers(&mut self, app: u16, readers: &[Option<RegionReader>]) {
        let all = (0..).zip(readers.iter().cloned());
        let core = self.core.0;
        self.proxy.set_readers(app, all.filter_map(|(shard, reader)| Some((shard, reader?))).filter(|(shard, _)| *shard != core));
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
