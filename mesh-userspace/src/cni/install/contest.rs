//! Somebody else who takes the agent's configuration away, or rewrites it, again and again: it is put back, and not at full
//! speed. Pure, but for the time that it is told.

use std::time::{Duration, Instant};

/// Longest pause before it is put back.
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// What has stood for so long is not contested.
pub(super) const QUIET: Duration = Duration::from_mins(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Contest {
    /// What was written last, and when.
    written: Option<(Vec<u8>, Instant)>,
    /// How often in a row it did not stand.
    lost: u32,
    /// When it is put back, once it was found to be gone.
    due: Option<Instant>,
}

impl Contest {
    /// What should be there is not: how long to leave that so. Nothing, where it was never there or has become another.
    pub(super) fn pause(&mut self, wanted: &[u8], now: Instant) -> Duration {
        let Some((_, at)) = self.written.as_ref().filter(|(written, _)| written == wanted) else {
            return Duration::ZERO;
        };
        let due = if let Some(due) = self.due {
            due
        } else {
            let is_contested = now.saturating_duration_since(*at) < QUIET;
            self.lost = if is_contested { self.lost.saturating_add(1) } else { 1 };
            now + pause(self.lost)
        };
        self.due = Some(due);
        due.saturating_duration_since(now)
    }

    /// It was written; whether that was to put it back.
    pub(super) fn wrote(&mut self, text: Vec<u8>, now: Instant) -> bool {
        self.written = Some((text, now));
        self.due.take().is_some()
    }

    /// For how long it must stand yet to count as uncontested; `None` where it does.
    pub(super) fn is_on(&self, now: Instant) -> Option<Duration> {
        let (_, at) = self.written.as_ref().filter(|_| self.lost > 1)?;
        let left = QUIET.saturating_sub(now.saturating_duration_since(*at));
        (self.due.is_some() || !left.is_zero()).then_some(left)
    }
}

/// Before it is put back for the `lost`th time in a row: at once, then 1 s, and twice as long each time.
fn pause(lost: u32) -> Duration {
    match lost {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2).min(16)).min(MAX_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_while_it_is_contested_and_ends_when_it_stands() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut contest = Contest::default();
        assert_eq!(contest.pause(b"a", at(0)), Duration::ZERO, "it was never there");
        assert!(!contest.wrote(b"a".to_vec(), at(0)));
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..10 {
            now += 1;
            let pause = contest.pause(b"a", at(now));
            pauses.push(pause.as_secs());
            // Looked at meanwhile.
            assert_eq!(contest.pause(b"a", at(now)), pause);
            now += pause.as_secs();
            assert_eq!(contest.pause(b"a", at(now)), Duration::ZERO);
            assert!(contest.wrote(b"a".to_vec(), at(now)));
            assert_eq!(contest.is_on(at(now)).is_some(), pauses.len() > 1, "once is no contest");
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // The network's own became another: that is no contest.
        assert_eq!(contest.pause(b"b", at(now)), Duration::ZERO);
        assert!(!contest.wrote(b"b".to_vec(), at(now)));
        // It stands.
        assert_eq!(contest.is_on(at(now + 119)), Some(Duration::from_secs(1)));
        assert_eq!(contest.is_on(at(now + 120)), None);
        assert_eq!(contest.pause(b"b", at(now + 120)), Duration::ZERO);
        assert!(contest.wrote(b"b".to_vec(), at(now + 120)));
        assert_eq!(contest.is_on(at(now + 121)), None);
        assert_eq!(contest.pause(b"b", at(now + 121)), Duration::from_secs(1));
        assert!(contest.is_on(at(now + 500)).is_some(), "it is not put back yet");
    }
}
