//! Fields of `TCPRoute`s and `TLSRoute`s.

use super::Field;

pub(super) const FIELDS: &[Field] = &[];
