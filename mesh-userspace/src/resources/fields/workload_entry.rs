//! Fields of `WorkloadEntry`s.

use super::Field;

pub(super) const FIELDS: &[Field] = &[];
