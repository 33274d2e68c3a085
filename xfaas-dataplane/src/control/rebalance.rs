//! Moves hot sessions by itself: from a core that is over 80% busy to one below 50%, when that makes the busiest core less busy.
//! A thread of its own that looks once a second; it asks shards something only when one of them is that busy.

use super::moving::{HotSession, MoveError, MoveRequest};
use super::shards::Shards;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Parts of a second in which a core ran.
const BUSY_FROM: f64 = 0.8;
const IDLE_BELOW: f64 = 0.5;
/// The busiest of both cores must become less busy by so much, or nothing is gained that is worth a move.
const GAIN_MIN: f64 = 0.1;
/// How long it must have been so before a session is moved, in looks, and how long none is moved after that.
const LOOKS_MIN: u32 = 3;
const REST: Duration = Duration::from_secs(10);
/// After a container was turned away no session is moved for so long: it is to join meanwhile.
const CONTAINER_REST: Duration = Duration::from_secs(60);

/// The balancer's thread. Dropping it tells the thread to end, which it does after the move that it waits for, if any.
pub struct Rebalancer {
    _stop: Sender<()>,
}

impl Rebalancer {
    /// `moves_hot`: also moves sessions away from busy cores; else only home when a container wants to join. Errors: no thread can be started.
    pub fn start(shards: Arc<dyn Shards>, moves_hot: bool) -> std::io::Result<Rebalancer> {
        let (stop, stopped) = channel();
        let look = move || {
            let mut watch = Watch::new(shards, moves_hot);
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                watch.look();
            }
        };
        std::thread::Builder::new().name("xfaas-balance".to_owned()).spawn(look)?;
        Ok(Rebalancer { _stop: stop })
    }
}

struct Watch {
    shards: Arc<dyn Shards>,
    moves_hot: bool,
    looked_at: Instant,
    /// `Shards::busy_ns` at the last look.
    busy_ns: Vec<u64>,
    /// Looks in a row that found the same shard too busy.
    hot: Option<(usize, u32)>,
    rests_until: Instant,
    /// What was said of sessions that stay away: each once, however often a container asks.
    told: HashSet<String>,
}

impl Watch {
    fn new(shards: Arc<dyn Shards>, moves_hot: bool) -> Watch {
        let (busy_ns, now) = (shards.busy_ns(), Instant::now());
        Watch { shards, moves_hot, looked_at: now, busy_ns, hot: None, rests_until: now, told: HashSet::new() }
    }

    fn look(&mut self) {
        if self.shards.take_wanted_home() {
            self.rests_until = Instant::now() + CONTAINER_REST;
            self.bring_home();
        }
        let (busy_ns, now) = (self.shards.busy_ns(), Instant::now());
        let time_ns = now.duration_since(self.looked_at).as_nanos() as f64;
        let before = std::mem::replace(&mut self.busy_ns, busy_ns);
        self.looked_at = now;
        if !self.moves_hot || before.len() != self.busy_ns.len() {
            return;
        }
        let part = |(now_ns, then_ns): (&u64, &u64)| now_ns.saturating_sub(*then_ns) as f64 / time_ns;
        let busy: Vec<f64> = self.busy_ns.iter().zip(&before).map(part).collect();
        let Some((from, to)) = unequal(&busy).filter(|_| now >= self.rests_until) else {
            self.hot = None;
            return;
        };
        let looks = self.hot.map_or(0, |(shard, looks)| if shard == from { looks } else { 0 }) + 1;
        self.hot = Some((from, looks));
        // Asked at each look, because an answer is about the time since the last one.
        let Ok(sessions) = self.shards.hottest(from as u16) else { return };
        if looks < LOOKS_MIN {
            return;
        }
        if let Some(session) = worth_moving(busy[from], busy[to], &sessions) {
            self.move_one(session, to as u16);
        }
    }

    fn move_one(&mut self, session: &HotSession, core: u16) {
        self.rests_until = Instant::now() + REST;
        self.hot = None;
        let HotSession { app, session, part } = session;
        match self.shards.move_session(&MoveRequest { app: app.clone(), session: session.clone(), core }) {
            Ok(reply) => tracing::info!(app, session, from = reply.from, to = core, part, "moved a hot session to a core with room"),
            Err(MoveError::Containers { .. }) => self.rests_until = Instant::now() + CONTAINER_REST,
            Err(error) => tracing::info!(app, session, to = core, %error, "a hot session stays where it is"),
        }
    }

    /// All sessions to where their slots say.
    fn bring_home(&mut self) {
        let mut told = HashSet::new();
        for request in self.shards.away_from_home() {
            let (app, session) = (&request.app, &request.session);
            match self.shards.move_session(&request) {
                Ok(_) => tracing::info!(app, session, "moved a session home for a container that wants to join"),
                Err(error) => {
                    let what = format!("{app}/{session}: {error}");
                    if !self.told.contains(&what) {
                        tracing::warn!(app, session, %error, "no container can join: a moved session does not come home");
                    }
                    told.insert(what);
                }
            }
        }
        self.told = told;
    }
}

/// The busiest shard and the idlest, if they are far enough apart.
fn unequal(busy: &[f64]) -> Option<(usize, usize)> {
    let by_busy = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
    let (from, most) = busy.iter().enumerate().max_by(by_busy)?;
    let (to, least) = busy.iter().enumerate().min_by(by_busy)?;
    (*most > BUSY_FROM && *least < IDLE_BELOW).then_some((from, to))
}

/// The hottest session whose move leaves neither core nearly as busy as the busiest is now. One that alone keeps a core busy stays: it would
/// only make another core as busy.
fn worth_moving(from_busy: f64, to_busy: f64, sessions: &[HotSession]) -> Option<&HotSession> {
    sessions.iter().find(|session| {
        let moved = session.part * from_busy;
        let busiest = (from_busy - moved).max(to_busy + moved);
        busiest <= from_busy - GAIN_MIN
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hot(parts: &[f64]) -> Vec<HotSession> {
        let session = |(i, part): (usize, &f64)| HotSession { app: "a".to_owned(), session: format!("s{i}"), part: *part };
        parts.iter().enumerate().map(session).collect()
    }

    fn moved(from: f64, to: f64, parts: &[f64]) -> Option<String> {
        worth_moving(from, to, &hot(parts)).map(|session| session.session.clone())
    }

    #[test]
    fn only_cores_far_apart_are_unequal() {
        assert_eq!(unequal(&[0.9, 0.2, 0.6]), Some((0, 1)));
        assert_eq!(unequal(&[0.1, 0.85]), Some((1, 0)));
        assert_eq!(unequal(&[0.8, 0.2]), None);
        assert_eq!(unequal(&[0.95, 0.5]), None);
        assert_eq!((unequal(&[0.99]), unequal(&[])), (None, None));
    }

    #[test]
    fn the_hottest_session_that_helps_is_moved() {
        assert_eq!(moved(0.95, 0.1, &[0.5, 0.4, 0.1]).as_deref(), Some("s0"));
        assert_eq!(moved(0.95, 0.1, &[0.9, 0.1]), None, "alone it would keep the other core as busy, and the rest is not worth it");
        assert_eq!(moved(0.95, 0.1, &[0.8, 0.2]).as_deref(), Some("s1"));
        assert_eq!(moved(1.0, 0.0, &[1.0]), None);
        assert_eq!(moved(0.95, 0.45, &[0.5, 0.2]).as_deref(), Some("s1"));
        assert_eq!(moved(0.95, 0.1, &[]), None);
    }
}
