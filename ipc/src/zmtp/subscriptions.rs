//! The prefixes that one subscriber asked for.

use super::WireLimits;
use super::error::ZmtpError;

/// A sorted set of prefixes, each with the number of times it was asked for: as in ZeroMQ, each needs its own cancel.
#[derive(Debug, Default)]
pub struct Subscriptions {
    entries: Vec<Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    prefix: Box<[u8]>,
    count: u64,
}

impl Subscriptions {
    /// Returns how many distinct prefixes there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tells whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a prefix, unless that exceeds the limits.
    pub fn add(&mut self, prefix: &[u8], limits: &WireLimits) -> Result<(), ZmtpError> {
        match self.find(prefix) {
            Ok(at) => self.entries[at].count += 1,
            Err(_) if self.entries.len() >= limits.max_subscriptions => {
                return Err(ZmtpError::TooManySubscriptions { limit: limits.max_subscriptions });
            }
            Err(_) if self.bytes + prefix.len() > limits.max_subscription_bytes => {
                return Err(ZmtpError::SubscriptionsTooLong { limit: limits.max_subscription_bytes });
            }
            Err(at) => {
                self.bytes += prefix.len();
                self.entries.insert(at, Entry { prefix: prefix.into(), count: 1 });
            }
        }
        Ok(())
    }

    /// Takes back one request for a prefix; one that was never asked for is ignored, as in ZeroMQ.
    pub fn remove(&mut self, prefix: &[u8]) {
        let Ok(at) = self.find(prefix) else { return };
        self.entries[at].count -= 1;
        if self.entries[at].count == 0 {
            self.entries.remove(at);
            self.bytes -= prefix.len();
        }
    }

    /// Tells whether `frame` begins with one of the prefixes.
    pub fn matches(&self, mut frame: &[u8]) -> bool {
        // Of all entries up to `frame`, the last one begins with every entry that is a prefix of `frame`:
        // so either it is one itself, or the answer lies in what it has in common with `frame`.
        loop {
            let after = self.entries.partition_point(|entry| &*entry.prefix <= frame);
            let Some(entry) = after.checked_sub(1).and_then(|at| self.entries.get(at)) else { return false };
            let common = entry.prefix.iter().zip(frame).take_while(|(ours, theirs)| ours == theirs).count();
            if common == entry.prefix.len() {
                return true;
            }
            frame = &frame[..common];
        }
    }

    /// Tells whether some frame that begins with `start` may match.
    pub fn touches(&self, start: &[u8]) -> bool {
        let next = self.entries.partition_point(|entry| &*entry.prefix < start);
        self.entries.get(next).is_some_and(|entry| entry.prefix.starts_with(start)) || self.matches(start)
    }

    fn find(&self, prefix: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| (*entry.prefix).cmp(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_counts_until_it_is_cancelled_as_often_as_asked() {
        let mut set = Subscriptions::default();
        let limits = WireLimits::default();
        set.add(b"a.", &limits).unwrap();
        set.add(b"a.", &limits).unwrap();
        set.remove(b"a.");
        assert!(set.matches(b"a.b\0{}"));
        set.remove(b"a.");
        set.remove(b"a.");
        assert!(!set.matches(b"a.b\0{}"));
        assert_eq!(set.bytes, 0);
    }

    #[test]
    fn limits_hold_and_known_prefixes_cost_nothing() {
        let limits = WireLimits { max_subscriptions: 2, max_subscription_bytes: 5, ..WireLimits::default() };
        let mut set = Subscriptions::default();
        set.add(b"aa", &limits).unwrap();
        assert_eq!(set.add(b"bbbb", &limits), Err(ZmtpError::SubscriptionsTooLong { limit: 5 }));
        set.add(b"bbb", &limits).unwrap();
        set.add(b"bbb", &limits).unwrap();
        assert_eq!(set.add(b"", &limits), Err(ZmtpError::TooManySubscriptions { limit: 2 }));
    }

    proptest! {
        #[test]
        fn matching_agrees_with_a_plain_search(
            prefixes in prop::collection::vec("[ab]{0,4}", 0..12),
            removed in prop::collection::vec("[ab]{0,4}", 0..6),
            frame in "[ab]{0,8}",
        ) {
            let mut model = prefixes.clone();
            let mut set = Subscriptions::default();
            for prefix in &prefixes {
                set.add(prefix.as_bytes(), &WireLimits::default()).unwrap();
            }
            for prefix in &removed {
                set.remove(prefix.as_bytes());
                if let Some(at) = model.iter().position(|known| known == prefix) {
                    model.remove(at);
                }
            }
            prop_assert_eq!(set.matches(frame.as_bytes()), model.iter().any(|prefix| frame.starts_with(prefix)));
            let touching = |prefix: &String| frame.starts_with(prefix) || prefix.starts_with(&frame);
            prop_assert_eq!(set.touches(frame.as_bytes()), model.iter().any(touching));
        }
    }
}
