//! Lists sessions for control, some at a time between two turns: however many there are, no call waits long for it.
//! A stage of the loop, after the calls. A session that comes, goes or moves meanwhile may be in the list or not; every other is in it once.

use super::mailbox::{SessionRow, SessionsQuery};
use super::turn::Shard;
use crate::state::SESSION_BUCKETS;
use crate::sys::clock;
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use xfaas_common::limits::FUNCTIONS_MAX;

/// Work on lists at a time; to it comes at most one of a region's `SESSION_BUCKETS` parts, begun before it was over.
const STEP_NS_MAX: u64 = 200_000;
/// Lists that are asked for: control's helpers are fewer, but one that gave up may ask again.
const LISTINGS_MAX: usize = 16;

/// One list, as far as it is.
struct Listing {
    query: SessionsQuery,
    answer: SyncSender<Vec<SessionRow>>,
    rows: Vec<SessionRow>,
    /// What comes next: an app, and the part of its region.
    app: usize,
    bucket: usize,
}

/// Lists under way, one after another.
#[derive(Default)]
pub(super) struct Listings(VecDeque<Listing>);

impl Listings {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Shard {
    /// Too many are asked for: the answer's end is dropped, and that tells the asker.
    pub(super) fn begin_listing(&mut self, query: SessionsQuery, answer: SyncSender<Vec<SessionRow>>) {
        if self.listings.0.len() < LISTINGS_MAX {
            let app = query.app.map_or(0, usize::from);
            self.listings.0.push_back(Listing { query, answer, rows: Vec::new(), app, bucket: 0 });
        }
    }

    /// Goes on with the list that was asked for first.
    pub(super) fn step_listing(&mut self) {
        let Some(mut listing) = self.listings.0.pop_front() else { return };
        let until_ns = clock::monotonic_ns() + STEP_NS_MAX;
        while self.list_some(&mut listing) {
            if clock::monotonic_ns() >= until_ns {
                return self.listings.0.push_front(listing);
            }
        }
        // An asker that gave up has dropped its end.
        listing.answer.try_send(listing.rows).ok();
    }

    /// Lists a part of one region. False: that was all, or all that is wanted.
    fn list_some(&self, listing: &mut Listing) -> bool {
        let Listing { query, rows, app: app_next, bucket, .. } = listing;
        let app = *app_next as u16;
        if let Some(region) = self.proxy.state().region(app) {
            for (session, namespace) in region.sessions_of(*bucket) {
                if rows.len() >= query.limit {
                    return false;
                }
                if !session.as_bytes().starts_with(&query.prefix) || self.moves.is_arriving(app, &session) {
                    continue;
                }
                let Some((state_bytes, keys)) = region.namespace_size(namespace) else { continue };
                let table_hash = self.placement.hash(&session).table_hash();
                let (workers, containers) = self.proxy.presence_of(app, &session, table_hash, self.now_ns);
                rows.push(SessionRow { app, session, state_bytes, keys, workers: workers as u64, containers: containers as u64 });
            }
            *bucket += 1;
            if *bucket < SESSION_BUCKETS {
                return true;
            }
        }
        (*app_next, *bucket) = (*app_next + 1, 0);
        query.app.is_none() && *app_next < FUNCTIONS_MAX
    }
}
