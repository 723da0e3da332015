//! What was said last of what goes wrong again and again: the same is said once, and again when it is another or was over.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Quiet for so long, a thing was over.
const OVER: Duration = Duration::from_mins(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<String, (String, Instant)>);

impl Told {
    /// Whether `text` is to be said of `subject` now: it is not what was found the last time, or that is a while ago.
    pub(super) fn is_news(&mut self, subject: &str, text: &str) -> bool {
        self.is_news_at(subject, text, Instant::now())
    }

    fn is_news_at(&mut self, subject: &str, text: &str, now: Instant) -> bool {
        self.0.retain(|_, (_, last)| now.duration_since(*last) < OVER);
        let before = self.0.insert(subject.to_owned(), (text.to_owned(), now));
        before.is_none_or(|(before, _)| before != text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_until_it_changes_or_was_over() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut told = Told::default();
        let cases = [
            ("a", "x", 0, true),
            ("a", "x", 1, false),
            ("b", "x", 1, true),
            // For as long as it goes on.
            ("a", "x", 59, false),
            ("a", "x", 118, false),
            ("a", "y", 119, true),
            ("a", "x", 120, true),
            ("b", "x", 120, true),
            ("a", "x", 180, true),
        ];
        for (subject, text, at, expected) in cases {
            assert_eq!(
                told.is_news_at(subject, text, start + at * second),
                expected,
                "{subject} {text} {at}"
            );
        }
        told.is_news_at("c", "x", start + 1000 * second);
        assert_eq!(told.0.len(), 1, "what is over is forgotten");
    }
}
