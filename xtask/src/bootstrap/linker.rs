//! `bpf-linker`, whose LLVM must read what the compiler's LLVM writes: the same major version or a newer one.
//!
//! Looked for on the PATH, in `target/tools/bin`, and in the user's cache, from where it is copied; built otherwise, and
//! then left in the cache for the next clone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{apt::Apt, compiler::Compiler, say};
use crate::{process, repo};

const VERSION: &str = "0.13.0";
/// What [`VERSION`] has a feature for.
const LLVM_MAJORS: [u32; 3] = [21, 22, 23];

/// Whether there is a bpf-linker for a compiler with this LLVM.
pub(super) fn check_llvm(major: u32) -> Result<()> {
    if !LLVM_MAJORS.contains(&major) {
        bail!("bpf-linker {VERSION} does not go with its LLVM {major}, only with {LLVM_MAJORS:?}");
    }
    Ok(())
}

/// A linker that is there and goes with `compiler`.
pub(crate) fn find(compiler: &Compiler) -> Result<PathBuf> {
    let mut why_not = Vec::new();
    for candidate in repo::find_program("bpf-linker").into_iter().chain([in_clone()]) {
        match check(&candidate, compiler) {
            Ok(()) => return Ok(candidate),
            Err(error) => why_not.push(format!("{error:#}")),
        }
    }
    bail!("no bpf-linker goes with {compiler}: {}; run `cargo xtask bootstrap`", why_not.join("; "));
}

pub(super) fn find_or_install(compiler: &Compiler, apt: &mut Apt) -> Result<()> {
    let llvm = compiler.llvm;
    let cached =
        repo::cache(&format!("bpf-linker-{VERSION}-llvm-{llvm}/bin")).map(|dir| dir.join("bpf-linker"));

    let (path, origin) = if let Ok(path) = find(compiler) {
        (path, "")
    } else if let Some(cached) = cached.as_ref().filter(|cached| check(cached, compiler).is_ok()) {
        copy(cached, &in_clone())?;
        (in_clone(), ", from the user's cache")
    } else {
        build(llvm, apt)?;
        check(&in_clone(), compiler).context("the bpf-linker that was just built does not work")?;
        (in_clone(), ", built")
    };
    // Only what this clone built itself: it is known to be VERSION with this LLVM.
    if let Some(cached) = cached
        && path == in_clone()
        && check(&cached, compiler).is_err()
    {
        copy(&path, &cached)?;
    }
    say("linker", &format!("{}{origin}", path.display()));
    Ok(())
}

fn in_clone() -> PathBuf {
    repo::tools().join("bin/bpf-linker")
}

fn build(llvm: u32, apt: &mut Apt) -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{llvm}");
    say("linker", &format!("building bpf-linker {VERSION} for LLVM {llvm}, about two minutes"));
    let packages = [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "libzstd-dev".to_owned(),
        "zlib1g-dev".to_owned(),
    ];
    if !packages.iter().all(|package| is_installed(package)) {
        apt.install(&packages).with_context(|| {
            format!(
                "bpf-linker cannot be built without LLVM {llvm}; \
                 or put a bpf-linker {VERSION} for LLVM {llvm} on the PATH"
            )
        })?;
    }
    let mut install = process::cargo();
    // LLVM_PREFIX is for bpf-linker's own build script, the other for llvm-sys: without both, the wrong LLVM is found.
    install
        .args(["install", "--locked", "bpf-linker", "--version", VERSION, "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(repo::tools())
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::logged(&mut install, "cargo-install-bpf-linker", None).context("building bpf-linker failed")
}

fn is_installed(package: &str) -> bool {
    process::answer(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Whether `linker` runs on this machine and reads what `compiler` writes.
fn check(linker: &Path, compiler: &Compiler) -> Result<()> {
    let shown = linker.display();
    if !linker.exists() {
        bail!("{shown} does not exist");
    }
    process::answer(Command::new(linker).arg("--version"))?;
    let image = fs::read(linker).with_context(|| format!("cannot read {shown}"))?;
    match llvm_major(&image) {
        Some(major) if major >= compiler.llvm => Ok(()),
        Some(major) => bail!("{shown} has LLVM {major}, older than the compiler's {}", compiler.llvm),
        None => bail!("{shown} does not tell which LLVM it has"),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    repo::write_atomically(to, &bytes, 0o755)
}

/// The major version of the LLVM that a program is linked with.
///
/// `bpf-linker --version` does not tell. A shared LLVM is needed by name (`libLLVM.so.22.1`, `libLLVM-21.so`); one that
/// is linked in carries the mark that its bitcode writer leaves (`LLVM22.1.2-rust-1.95.0-stable`).
fn llvm_major(image: &[u8]) -> Option<u32> {
    let name = b"LLVM";
    image.windows(name.len()).enumerate().filter(|(_, window)| window == name).find_map(|(at, _)| {
        let rest = &image[at + name.len()..];
        let shared = image[..at].ends_with(b"lib");
        let number = match rest {
            [b'.', b's', b'o', b'.', number @ ..] | [b'-', number @ ..] if shared => number,
            number if !shared => number,
            _ => return None,
        };
        let digits = number.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let dotted = shared || number.get(digits) == Some(&b'.');
        std::str::from_utf8(&number[..digits])
            .ok()
            .filter(|_| dotted && (2..=3).contains(&digits))?
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[test]
    fn tells_the_llvm_of_a_linker() {
        let cases: [(&str, &[u8], Option<u32>); 7] = [
            ("shared, current naming", b"\0LLVMGetTarget\0libLLVM.so.22.1\0", Some(22)),
            ("shared, older naming", b"\0libLLVM-19.so.1\0", Some(19)),
            ("shared, rustc's", b"\0libLLVM.so.22.1-rust-1.95.0-stable\0", Some(22)),
            ("linked in", b"\0LLVM22.1.2-rust-1.95.0-stable\0", Some(22)),
            ("a help text", b"LLVM 22 builds also support", None),
            ("a symbol", b"\0LLVMParseBitcodeInContext2\0LLVM", None),
            ("nothing", b"", None),
        ];
        for (name, image, expected) in cases {
            assert_eq!(llvm_major(image), expected, "{name}");
        }
    }
}
