//! Fields of `VirtualService`s.

use super::Field;

pub(super) const FIELDS: &[Field] = &[];
