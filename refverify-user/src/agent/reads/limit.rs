//! Spreads reads over time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// No more than so many bytes a second.
#[derive(Debug)]
pub(super) struct Limit {
    bytes_per_second: u64,
    /// When the next read may begin.
    next: Instant,
}

impl Limit {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: Instant::now() }
    }

    /// Waits until so many bytes may be read.
    pub(super) fn spend(&mut self, len_bytes: u32) {
        thread::sleep(self.pause(len_bytes, Instant::now()));
    }

    /// How long to wait `now`, before so many bytes are read. What was not read while nothing was
    /// wanted is not made up for.
    fn pause(&mut self, len_bytes: u32, now: Instant) -> Duration {
        let begin = self.next.max(now);
        let nanos = u64::from(len_bytes).saturating_mul(1_000_000_000) / self.bytes_per_second;
        self.next = begin + Duration::from_nanos(nanos);
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn in_no_span_of_time_is_more_read_than_the_limit_and_one_read() {
        let mut limit = Limit::new(1 << 20);
        let mut now = limit.next;
        let mut begun = Vec::new();
        for round in 0..400_u32 {
            let len_bytes = (1 + round % 7) * 16384;
            now += limit.pause(len_bytes, now);
            begun.push((now, u64::from(len_bytes)));
            // Whoever reads is slow now and then, for longer than the limit asks.
            now += Duration::from_millis(u64::from(round % 50 / 40 * 90));
        }
        for (first, (from, _)) in begun.iter().enumerate() {
            let mut bytes = 0;
            for (at, len_bytes) in &begun[first..] {
                let allowed = (*at - *from).as_secs_f64() * f64::from(1 << 20);
                #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
                let read = bytes as f64;
                assert!(read <= allowed + 1.0, "{read} bytes where {allowed} were allowed");
                bytes += len_bytes;
            }
        }
    }

    #[test]
    fn all_that_the_limit_allows_can_be_read() {
        let mut limit = Limit::new(1 << 20);
        let start = limit.next;
        let mut now = start;
        for _ in 0..=64 {
            now += limit.pause(65536, now);
        }
        assert_eq!(now - start, 4 * SECOND);
    }

    #[test]
    fn a_rest_is_not_made_up_for() {
        let mut limit = Limit::new(65536);
        let now = limit.next + 10 * SECOND;
        assert_eq!(limit.pause(65536, now), Duration::ZERO);
        assert_eq!(limit.pause(65536, now), SECOND);
    }
}
