//! What the kernel does not hold although it should, kept until it does: each is tried again, and told as long as it lasts.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use super::{DatapathError, MapSizes};

/// Something that is not in the kernel as the snapshot says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncProblem {
    /// A map is full.
    #[error("{}", full(map, waiting))]
    Full {
        /// Which map.
        map: &'static str,
        /// What waits for room in it.
        waiting: Vec<String>,
    },
    /// Something else went wrong.
    #[error("{what} is not in the kernel as it should be: {reason}")]
    Unwritten {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
}

/// Names that are told of those that wait.
const NAMED: usize = 5;

fn full(map: &str, waiting: &[String]) -> String {
    let mut text = format!("the kernel map {map} is full");
    if let Some(flag) = MapSizes::flag(map) {
        // Writing to a string cannot fail.
        let _ = write!(text, " (raise {flag})");
    }
    let more = if waiting.len() > NAMED { ", …" } else { "" };
    let named = waiting[..waiting.len().min(NAMED)].join(", ");
    let _ = write!(text, ": what it holds stays in force, {} wait: {named}{more}", waiting.len());
    text
}

/// Why something could not be written.
#[derive(Clone, Debug)]
pub(super) enum Reason {
    Full(&'static str),
    Other(String),
}

impl From<DatapathError> for Reason {
    fn from(error: DatapathError) -> Self {
        if let DatapathError::Full { map } = error {
            return Self::Full(map);
        }
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {source}");
            cause = source.source();
        }
        Self::Other(text)
    }
}

/// One line a full map, one for each of the rest.
pub(super) fn problems(unwritten: impl IntoIterator<Item = (impl Display, Reason)>) -> Vec<SyncProblem> {
    let (mut full, mut rest) = (BTreeMap::<&'static str, Vec<String>>::new(), Vec::new());
    for (what, reason) in unwritten {
        match reason {
            Reason::Full(map) => full.entry(map).or_default().push(what.to_string()),
            Reason::Other(reason) => rest.push(SyncProblem::Unwritten { what: what.to_string(), reason }),
        }
    }
    let full = full.into_iter().map(|(map, waiting)| SyncProblem::Full { map, waiting });
    full.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_one_line_with_its_flag_and_a_few_names() {
        let waiting = (0..7).map(|number| (format!("service default/s{number}"), Reason::Full("SERVICES")));
        let told: Vec<String> = problems(waiting).iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1);
        assert!(
            told[0].contains("--max-services") && told[0].contains("7 wait: service default/s0, "),
            "{told:?}"
        );
        assert!(told[0].ends_with("default/s4, …"), "{told:?}");
    }
}
