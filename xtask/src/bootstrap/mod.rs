//! `cargo xtask bootstrap`: everything that building, testing and the demo need besides cargo; what `image` needs besides is brought by `image`.
//!
//! Only this module installs. Each thing gets one line that says what was found or installed, and why.
//! What is there already costs nothing, so that `test` and `ci` can always start here.

mod apt;
pub(crate) mod compiler;
pub(crate) mod linker;
pub(crate) mod musl;
mod programs;

use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    let mut apt = apt::Apt::default();
    let compiler = compiler::find_or_install(&mut apt)?;
    linker::find_or_install(&compiler, &mut apt)?;
    programs::find_or_install(&mut apt)
}

/// What the container image is built with. Only `image` needs it, and nothing else waits for it.
pub(crate) fn for_image() -> Result<(compiler::Compiler, musl::Musl)> {
    let mut apt = apt::Apt::default();
    let compiler = compiler::find_or_install(&mut apt)?;
    linker::find_or_install(&compiler, &mut apt)?;
    let musl = musl::find_or_install(&mut apt)?;
    Ok((compiler, musl))
}

/// One line of the report.
fn say(what: &str, found: &str) {
    println!("bootstrap: {what:<10} {found}");
}
