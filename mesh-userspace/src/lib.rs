//! The node agent of the mesh, as a library.

pub mod model;
