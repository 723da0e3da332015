//! `cargo xtask image`: the container image, as an OCI layout, without a Docker daemon.
//!
//! Nothing but two static binaries and four small files. Everything that goes into a digest is settled here: the same
//! source, compiler and C compiler give the same image, in whatever folder and whenever it is built. What is beside the
//! image: a bill of materials that names the image's digest.
//!
//! | module | its business |
//! |---|---|
//! | `source` | which source this is, and its time |
//! | `build` | the static binaries, and what was compiled for them |
//! | `root` | the file system in the image |
//! | `layer` | a file system as a compressed tar |
//! | `layout` | blobs, manifest and index; the folder and the archive made of them |
//! | `sbom` | the bill of materials |
//! | `proof` | the binaries run in a root that is unpacked from the layer |

mod build;
mod layer;
mod layout;
mod name;
mod proof;
mod root;
mod sbom;
mod source;
#[cfg(test)]
mod tests;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{bootstrap, repo};
use build::Build;
use layer::Layer;
use layout::Image;
use name::ImageName;
use source::Source;

/// No larger, compressed, in the release profile.
const LIMIT: usize = 30 << 20;

#[derive(Args)]
pub(crate) struct Options {
    /// How the binaries are built: `dev` takes minutes less and makes a larger image, for trying the image itself
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Folder for the OCI layout (`oci/`) and the bill of materials
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also one file, for `docker load`, `podman load` and `ctr images import`
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// The image's name and tag [default: mesh:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<ImageName>,
}

/// Cargo's profile.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    Release,
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| repo::root().join("target/image"));
    let source = Source::here()?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => ImageName::of_version(source.version())?,
    };
    let (compiler, musl) = bootstrap::for_image()?;
    let built = Build::run(&compiler, &musl, options.profile)?;
    let layer = Layer::write(&root::entries(&built)?, source.time)?;
    proof::run(&layer)?;
    let image = Image::assemble(&layer, &source, &name)?;
    image.write_layout(&out.join("oci"))?;
    let bill = out.join("mesh.cdx.json");
    repo::write_atomically(&bill, &sbom::write(&built, &source, &name, image.digest())?, 0o644)?;
    if let Some(archive) = &options.archive {
        let file = fs::File::create(archive).with_context(|| {
            format!("cannot write {}; is its folder there, and writable?", archive.display())
        })?;
        image.write_archive(file).with_context(|| format!("cannot write {}", archive.display()))?;
        println!("image: archive      {}", archive.display());
    }
    println!("image: layout       {}", out.join("oci").display());
    println!("image: materials    {}", bill.display());
    println!("image: uncompressed {}", mebibytes(layer.uncompressed_size()));
    println!("image: compressed   {}", mebibytes(image.size()));
    println!("image: {name}@{}", image.digest());
    if options.profile == Profile::Release && image.size() > LIMIT {
        bail!(
            "the image has {}, compressed, above its limit of {}: see what grew (`cargo bloat`), or raise LIMIT in {}",
            mebibytes(image.size()),
            mebibytes(LIMIT),
            file!()
        );
    }
    Ok(())
}

fn mebibytes(bytes: usize) -> String {
    let hundredths = bytes.saturating_mul(100) >> 20;
    format!("{}.{:02} MiB", hundredths / 100, hundredths % 100)
}
