//! Whose read is next: connections are few, and those who read take turns at them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, Mutex as Place, OwnedSemaphorePermit, Semaphore};

/// Gives out the connections. One read of each source stands in line for them, and its others wait behind that one: a read
/// waits for no more than one turn of every other source, however many reads those have.
#[derive(Debug)]
pub(super) struct Turns {
    /// One for each connection, given out in the order of the line.
    permits: Arc<Semaphore>,
    /// The places in line of the sources that wait now. It holds nothing else, so the callers' own limits bound it.
    places: Mutex<HashMap<u64, Weak<Place<()>>>>,
}

impl Turns {
    /// Returns turns at `count` connections, at least one.
    pub(super) fn new(count: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(count.max(1))), places: Mutex::default() }
    }

    /// Returns a turn where nobody has to be waited for.
    pub(super) fn free(&self) -> Option<OwnedSemaphorePermit> {
        // One is free only while nobody stands in line.
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Waits for a turn of `source`, which lasts as long as the permit. May be dropped at any time.
    pub(super) async fn next(&self, source: u64) -> Result<OwnedSemaphorePermit, AcquireError> {
        if let Some(permit) = self.free() {
            return Ok(permit);
        }
        let place = self.place(source);
        let _first_of_its_source = place.lock().await;
        Arc::clone(&self.permits).acquire_owned().await
    }

    fn place(&self, source: u64) -> Arc<Place<()>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get(&source).and_then(Weak::upgrade) {
            return place;
        }
        places.retain(|_, place| place.strong_count() > 0);
        let place = Arc::default();
        places.insert(source, Arc::downgrade(&place));
        place
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use tokio::sync::mpsc;
    use tokio::task::JoinSet;

    use super::*;

    /// Lets each of `sources` want a turn, in this order, while the only connection is taken; returns whose turn came when.
    async fn order(sources: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let turns = Arc::new(Turns::new(1));
        let taken = turns.next(0).await.unwrap();
        let (came, mut order) = mpsc::unbounded_channel();
        let mut reads = JoinSet::new();
        for source in sources {
            let (turns, came) = (Arc::clone(&turns), came.clone());
            reads.spawn(async move {
                let _turn = turns.next(source).await.unwrap();
                came.send(source).unwrap();
            });
            // This runtime has one thread: the read stands in line now.
            tokio::task::yield_now().await;
        }
        drop((taken, came));
        let mut came = Vec::new();
        while let Some(source) = order.recv().await {
            came.push(source);
        }
        came
    }

    #[tokio::test]
    async fn sources_take_turns_however_much_each_of_them_asks_for() {
        let greedy = iter::repeat_n(1, 100);
        let came = order(greedy.chain([2, 2, 3])).await;
        assert_eq!(came.len(), 103);
        assert_eq!(came[..7], [1, 2, 3, 1, 2, 1, 1]);
    }

    #[tokio::test]
    async fn a_lone_source_has_every_connection() {
        let turns = Turns::new(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(turns.next(1).await.unwrap());
        }
        assert_eq!(turns.permits.available_permits(), 0);
    }

    #[tokio::test]
    async fn who_waits_no_longer_takes_no_turn_and_leaves_nothing_behind() {
        let turns = Turns::new(1);
        let taken = turns.next(0).await.unwrap();
        for source in 1..100 {
            let mut waiting = Box::pin(turns.next(source));
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        assert_eq!(turns.places.lock().unwrap().len(), 1);
        drop(taken);
        drop(turns.next(100).await.unwrap());
    }
}
