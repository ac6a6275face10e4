//! How much happens in a second, over the last few.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Samples that are kept, a second apart.
const SAMPLES: usize = 11;

/// Totals at a moment, and how fast they grow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Totals<T> {
    /// Writes answered.
    pub(crate) writes: T,
    /// Events committed.
    pub(crate) events: T,
    /// Calls received.
    pub(crate) calls: T,
}

/// The last samples of some totals.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<VecDeque<(Instant, Totals<u64>)>>);

impl Rates {
    /// Adds a sample; to be called about every second.
    pub(crate) fn sample(&self, now: Instant, totals: Totals<u64>) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back((now, totals));
    }

    /// Returns the growth per second since the oldest sample; 0 while there are not two.
    pub(crate) fn per_second(&self) -> Totals<f64> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((from, before)), Some((to, now))) = (samples.front(), samples.back()) else {
            return Totals::default();
        };
        let seconds = (*to - *from).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |before: u64, now: u64| if seconds > 0.0 { (now - before) as f64 / seconds } else { 0.0 };
        Totals {
            writes: rate(before.writes, now.writes),
            events: rate(before.events, now.events),
            calls: rate(before.calls, now.calls),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn growth_is_told_per_second_over_the_last_samples() {
        let rates = Rates::default();
        assert_eq!(rates.per_second(), Totals::default());
        let began = Instant::now();
        for second in 0..30 {
            let totals = Totals { writes: 10 * second, events: 20 * second.min(25), calls: 0 };
            rates.sample(began + Duration::from_secs(second), totals);
        }
        assert_eq!(rates.per_second(), Totals { writes: 10.0, events: 12.0, calls: 0.0 });
    }
}
