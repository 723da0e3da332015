//! `exportTo`: for the clients of which namespaces a rule is.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::resources) enum Namespaces {
    /// Those that are named; with none of them, nobody's.
    Some(BTreeSet<Arc<str>>),
    /// All.
    All,
}

impl Namespaces {
    /// `exportTo` of a rule in `namespace`: `.` is its own, `*` are all, `~` is none; nothing said means all
    /// (`defaultVirtualServiceExportTo` is not set).
    pub(in crate::resources) fn exported(export_to: &[String], namespace: &Arc<str>) -> Self {
        if export_to.is_empty() || export_to.iter().any(|to| to == "*") {
            return Self::All;
        }
        let named = export_to.iter().filter(|to| *to != "~").map(|to| match &**to {
            "." => Arc::clone(namespace),
            other => other.into(),
        });
        Self::Some(named.collect())
    }

    /// Whether there is none.
    pub(in crate::resources) fn is_empty(&self) -> bool {
        matches!(self, Self::Some(named) if named.is_empty())
    }

    /// Whether each of these is one of `others`.
    pub(in crate::resources) fn is_within(&self, others: &Self) -> bool {
        match (self, others) {
            (_, Self::All) => true,
            (Self::All, Self::Some(_)) => false,
            (Self::Some(own), Self::Some(others)) => own.is_subset(others),
        }
    }

    /// Those that are in both.
    pub(in crate::resources) fn and(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, one) | (one, Self::All) => one.clone(),
            (Self::Some(one), Self::Some(other)) => {
                Self::Some(one.intersection(other).map(Arc::clone).collect())
            }
        }
    }

    /// Those that are in one of them.
    pub(in crate::resources) fn or(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Some(one), Self::Some(other)) => Self::Some(one.union(other).map(Arc::clone).collect()),
        }
    }

    /// One.
    pub(in crate::resources) fn only(namespace: impl Into<Arc<str>>) -> Self {
        Self::Some([namespace.into()].into())
    }

    /// As a condition; `None` for nobody's. All are asked for by asking for none in particular.
    pub(in crate::resources) fn condition(&self) -> Option<Vec<Arc<str>>> {
        match self {
            Self::All => Some(Vec::new()),
            Self::Some(named) if named.is_empty() => None,
            Self::Some(named) => Some(named.iter().map(Arc::clone).collect()),
        }
    }

    /// In which order Istio looks at rules for one host: those of a namespace alone, those exported to some, those for all
    /// (`SelectVirtualServices` in pilot/pkg/model/virtualservice.go).
    pub(in crate::resources) fn rank(&self, own: &Arc<str>) -> u8 {
        match self {
            Self::Some(named) if named.len() == 1 && named.contains(own) => 0,
            Self::Some(_) => 1,
            Self::All => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_to() {
        let own: Arc<str> = "shop".into();
        let some = |names: &[&str]| Namespaces::Some(names.iter().map(|&name| name.into()).collect());
        for (written, wanted, rank) in [
            (&[][..], Namespaces::All, 2),
            (&["*"], Namespaces::All, 2),
            (&["."], some(&["shop"]), 0),
            (&["shop"], some(&["shop"]), 0),
            (&[".", "bank"], some(&["bank", "shop"]), 1),
            (&["~"], some(&[]), 1),
        ] {
            let written: Vec<String> = written.iter().map(ToString::to_string).collect();
            let exported = Namespaces::exported(&written, &own);
            assert_eq!(exported, wanted, "{written:?}");
            assert_eq!(exported.rank(&own), rank, "{written:?}");
            assert_eq!(exported.is_empty(), exported.condition().is_none());
            assert_eq!(exported.and(&Namespaces::All), exported);
            assert_eq!(exported.or(&Namespaces::All), Namespaces::All);
            assert!(exported.is_within(&Namespaces::All) && exported.is_within(&exported));
        }
        let (one, both) = (some(&["shop"]), some(&["bank", "shop"]));
        assert!(one.is_within(&both) && !both.is_within(&one) && !Namespaces::All.is_within(&both));
        assert_eq!((one.and(&some(&["bank"])), one.or(&some(&["bank"]))), (some(&[]), both));
        assert_eq!(Namespaces::only("shop"), one);
    }
}
