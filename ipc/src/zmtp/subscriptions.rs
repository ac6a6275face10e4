//! Prefixes: those that one subscriber asked for, and who wants what begins with one.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Bound::{Included, Unbounded};

use super::WireLimits;
use super::error::ZmtpError;

/// Values by prefix, found by what begins with it: the cost is that of the prefixes that match, however many there are.
#[derive(Debug)]
pub struct Prefixes<T>(BTreeMap<Box<[u8]>, T>);

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Prefixes<T> {
    /// Returns how many prefixes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the prefixes.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.keys().map(|prefix| &**prefix)
    }

    /// Returns the value of exactly this prefix.
    pub fn get_mut(&mut self, prefix: &[u8]) -> Option<&mut T> {
        self.0.get_mut(prefix)
    }

    /// Sets the value of a prefix.
    pub fn insert(&mut self, prefix: &[u8], value: T) {
        self.0.insert(prefix.into(), value);
    }

    /// Removes a prefix.
    pub fn remove(&mut self, prefix: &[u8]) {
        self.0.remove(prefix);
    }

    /// Returns the values of all prefixes of `frame`, the longest first.
    pub fn matching<'a>(&'a self, frame: &'a [u8]) -> impl Iterator<Item = &'a T> {
        let mut rest = Some(frame);
        // Of all keys up to `rest`, the last one begins with every key that is a prefix of `rest`: so either it is one itself,
        // or the answer lies in what it has in common with `rest`.
        iter::from_fn(move || {
            loop {
                let bound = rest?;
                let (prefix, value) = self.0.range::<[u8], _>((Unbounded, Included(bound))).next_back()?;
                let common = prefix.iter().zip(bound).take_while(|(ours, theirs)| ours == theirs).count();
                if common == prefix.len() {
                    rest = common.checked_sub(1).map(|shorter| &bound[..shorter]);
                    return Some(value);
                }
                rest = Some(&bound[..common]);
            }
        })
    }

    /// Tells whether some frame that begins with `start` may match.
    pub fn touches(&self, start: &[u8]) -> bool {
        let next = self.0.range::<[u8], _>((Included(start), Unbounded)).next();
        next.is_some_and(|(prefix, _)| prefix.starts_with(start)) || self.matching(start).next().is_some()
    }
}

/// A set of prefixes, each with the number of times it was asked for: as in ZeroMQ, each needs its own cancel.
#[derive(Debug, Default)]
pub struct Subscriptions {
    counts: Prefixes<u64>,
    bytes: usize,
}

impl Subscriptions {
    /// Returns how many distinct prefixes there are.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Tells whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Returns the prefixes.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.counts.iter()
    }

    /// Adds a prefix, unless that exceeds the limits. Tells whether it is new.
    pub fn add(&mut self, prefix: &[u8], limits: &WireLimits) -> Result<bool, ZmtpError> {
        if let Some(count) = self.counts.get_mut(prefix) {
            *count += 1;
            return Ok(false);
        }
        if self.counts.len() >= limits.max_subscriptions {
            return Err(ZmtpError::TooManySubscriptions { limit: limits.max_subscriptions });
        }
        if self.bytes + prefix.len() > limits.max_subscription_bytes {
            return Err(ZmtpError::SubscriptionsTooLong { limit: limits.max_subscription_bytes });
        }
        self.bytes += prefix.len();
        self.counts.insert(prefix, 1);
        Ok(true)
    }

    /// Takes back one request for a prefix; one that was never asked for is ignored, as in ZeroMQ. Tells whether it was the last one.
    pub fn remove(&mut self, prefix: &[u8]) -> bool {
        let Some(count) = self.counts.get_mut(prefix) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.counts.remove(prefix);
        self.bytes -= prefix.len();
        true
    }

    /// Tells whether `frame` begins with one of the prefixes.
    pub fn matches(&self, frame: &[u8]) -> bool {
        self.counts.matching(frame).next().is_some()
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
        assert!(!set.remove(b"a."));
        assert!(set.matches(b"a.b\0{}"));
        assert!(set.remove(b"a."));
        assert!(!set.remove(b"a."));
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
            prop_assert_eq!(set.counts.touches(frame.as_bytes()), model.iter().any(touching));
            let mut lengths: Vec<_> = model.iter().filter(|prefix| frame.starts_with(*prefix)).map(String::len).collect();
            lengths.sort_unstable_by(|one, other| other.cmp(one));
            let counts: Vec<_> = lengths.chunk_by(|one, other| one == other).map(|alike| alike.len() as u64).collect();
            prop_assert_eq!(set.counts.matching(frame.as_bytes()).copied().collect::<Vec<_>>(), counts);
        }
    }
}
