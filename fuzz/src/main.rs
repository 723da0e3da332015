//! One program for all fuzz targets: `MESH_FUZZ_TARGET` says which, the arguments are libFuzzer's.
//!
//! What a target does is in `mesh_userspace::fuzzing`, where a test replays the corpus.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mesh_userspace::fuzzing::{Body, TARGETS};

static BODY: OnceLock<Body> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let body = BODY.get_or_init(|| {
        let name = std::env::var("MESH_FUZZ_TARGET").unwrap_or_default();
        let target = TARGETS.iter().find(|(target, _)| *target == name);
        let Some((_, body)) = target else {
            eprintln!("MESH_FUZZ_TARGET must be one of {:?}", TARGETS.map(|(name, _)| name));
            std::process::exit(2);
        };
        *body
    });
    body(data);
});
