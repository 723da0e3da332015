//! Fields of `ServiceEntry`s.

use super::Field;

pub(super) const FIELDS: &[Field] = &[];
