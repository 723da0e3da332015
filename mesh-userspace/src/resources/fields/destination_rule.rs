//! Fields of `DestinationRule`s.

use super::Field;

pub(super) const FIELDS: &[Field] = &[];
