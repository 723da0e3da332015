//! Puts the eBPF object where the crate embeds it from. The object is built by `cargo xtask build-ebpf`, with a compiler
//! of its own; nothing is compiled here.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let object = env::var_os("MESH_EBPF_OBJECT")
        .map_or_else(|| manifest.join("../target/ebpf/mesh-ebpf.o"), PathBuf::from);
    println!("cargo:rerun-if-env-changed=MESH_EBPF_OBJECT");
    println!("cargo:rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("mesh-ebpf.o");
    if let Err(error) = fs::copy(&object, &out) {
        println!(
            "cargo:error=no eBPF object at {} ({error}): build it with `cargo xtask build-ebpf`",
            object.display()
        );
        std::process::exit(1);
    }
}
