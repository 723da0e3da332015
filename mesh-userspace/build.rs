//! Puts the eBPF object where the crate embeds it from, and makes Rust of the protocol in `proto/`. The object is built
//! by `cargo xtask build-ebpf`, with a compiler of its own; the protocol is compiled here, without `protoc`.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let object = env::var_os("MESH_EBPF_OBJECT")
        .map_or_else(|| manifest.join("../target/ebpf/mesh-ebpf.o"), PathBuf::from);
    println!("cargo:rerun-if-env-changed=MESH_EBPF_OBJECT");
    println!("cargo:rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, out.join("mesh-ebpf.o")) {
        fail(&format!(
            "no eBPF object at {} ({error}): build it with `cargo xtask build-ebpf`",
            object.display()
        ));
    }
    let proto = manifest.join("proto");
    println!("cargo:rerun-if-changed={}", proto.display());
    let compiled = protox::compile([proto.join("ca.proto")], [&proto]);
    let descriptors = compiled.unwrap_or_else(|error| fail(&format!("proto/ca.proto: {error}")));
    // The transport is this project's own, at both ends.
    let generated = tonic_prost_build::configure().build_transport(false).compile_fds(descriptors);
    generated.unwrap_or_else(|error| fail(&format!("proto/ca.proto: {error}")));
}

fn fail(reason: &str) -> ! {
    println!("cargo:error={reason}");
    std::process::exit(1);
}
