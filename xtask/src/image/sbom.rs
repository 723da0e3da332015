//! The bill of materials: `CycloneDX` 1.5, with every crate that is linked into the binaries or the eBPF object.
//!
//! What is linked is what cargo says that it compiled for the target; build scripts, macros and tests are not in it. It
//! names the image by its digest, and is as reproducible as that.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, anyhow, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use cyclonedx_bom::{
    models::{
        component::Classification,
        dependency::{Dependencies, Dependency},
        external_reference::{self, ExternalReference, ExternalReferenceType, ExternalReferences},
        hash::{Hash, HashAlgorithm, HashValue, Hashes},
        license::{LicenseChoice, Licenses},
        property::{Properties, Property},
        tool::{Tool, Tools},
    },
    prelude::{
        Bom, Component, Components, DateTime, NormalizedString, Purl, SpdxExpression, SpecVersion, Uri,
        UrnUuid, Validate as _,
    },
};

use super::{build::Build, name::ImageName, source::Source};
use crate::repo;

const VERSION: SpecVersion = SpecVersion::V1_5;
/// Which of the two a component is linked into.
const LINKED_INTO: &str = "mesh:linked-into";

/// The bill of what `digest` names.
pub(super) fn write(built: &Build, source: &Source, name: &ImageName, digest: &str) -> Result<Vec<u8>> {
    let metadata = MetadataCommand::new()
        .current_dir(repo::root())
        .other_options(["--locked".to_owned()])
        .exec()
        .context("cannot ask cargo what the crates are (`cargo metadata`)")?;
    let linked = Linked::new(built);
    let image = image(name, digest)?;
    let mut components = linked.components(&metadata)?;
    let mut dependencies = vec![Dependency {
        dependency_ref: image.bom_ref.clone().unwrap_or_default(),
        dependencies: linked.roots(&metadata),
    }];
    dependencies.extend(linked.dependencies(&metadata));
    components.extend(runtimes(built)?);
    let bom = Bom {
        serial_number: Some(serial_number(digest)?),
        metadata: Some(cyclonedx_bom::prelude::Metadata {
            timestamp: Some(DateTime::try_from(source.created()?).context("the source's time")?),
            tools: Some(Tools::List(vec![
                Tool::new("mesh", "cargo xtask image", source.version()),
                Tool::new("The Rust Project", "rustc", &built.rustc),
            ])),
            component: Some(image),
            ..Default::default()
        }),
        components: Some(Components(components)),
        dependencies: Some(Dependencies(dependencies)),
        spec_version: VERSION,
        ..Bom::default()
    };
    let verdict = bom.validate_version(VERSION);
    if !verdict.passed() {
        bail!("the bill of materials is not as CycloneDX 1.5 wants it: {verdict:?}");
    }
    let mut bytes = Vec::new();
    bom.output_as_json(&mut bytes, VERSION).context("cannot write the bill of materials")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Crates by what they are linked into.
struct Linked<'a>(BTreeMap<&'a PackageId, BTreeSet<&'static str>>);

impl<'a> Linked<'a> {
    fn new(built: &'a Build) -> Self {
        let mut linked: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (packages, what) in [(&built.userspace, "binaries"), (&built.kernel, "ebpf")] {
            for package in packages {
                linked.entry(package).or_default().insert(what);
            }
        }
        Self(linked)
    }

    fn packages<'m>(
        &self,
        metadata: &'m Metadata,
    ) -> impl Iterator<Item = (&'m Package, &BTreeSet<&'static str>)> {
        // What is no package of the workspace's graph is of the compiler's own library.
        metadata.packages.iter().filter_map(|package| Some((package, self.0.get(&package.id)?)))
    }

    fn components(&self, metadata: &Metadata) -> Result<Vec<Component>> {
        let mut components: Vec<_> =
            self.packages(metadata).map(|(package, into)| component(package, into)).collect::<Result<_>>()?;
        components.sort_by(|a, b| a.bom_ref.cmp(&b.bom_ref));
        Ok(components)
    }

    /// The workspace's own crates.
    fn roots(&self, metadata: &Metadata) -> Vec<String> {
        let own = self.packages(metadata).filter(|(package, _)| package.source.is_none());
        sorted(own.map(|(package, _)| reference(package)))
    }

    /// Edges between what is linked; a dependency for building or testing is none.
    fn dependencies(&self, metadata: &Metadata) -> Vec<Dependency> {
        let packages: BTreeMap<_, _> =
            metadata.packages.iter().map(|package| (&package.id, package)).collect();
        let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
        let mut dependencies: Vec<_> = nodes
            .filter(|node| self.0.contains_key(&node.id))
            .filter_map(|node| {
                let normal = node.deps.iter().filter(|dependency| {
                    dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
                        && self.0.contains_key(&dependency.pkg)
                });
                let of =
                    normal.filter_map(|dependency| packages.get(&dependency.pkg)).map(|of| reference(of));
                Some(Dependency {
                    dependency_ref: reference(packages.get(&node.id)?),
                    dependencies: sorted(of),
                })
            })
            .collect();
        dependencies.sort_by(|a, b| a.dependency_ref.cmp(&b.dependency_ref));
        dependencies
    }
}

fn sorted(references: impl Iterator<Item = String>) -> Vec<String> {
    references.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Names a crate within the bill: without the folder that a package id of the workspace's own has in it.
fn reference(package: &Package) -> String {
    format!("{}@{}", package.name, package.version)
}

fn component(package: &Package, into: &BTreeSet<&'static str>) -> Result<Component> {
    let (name, version) = (package.name.as_str(), package.version.to_string());
    let mut component = Component::new(Classification::Library, name, &version, Some(reference(package)));
    component.description = package.description.as_deref().map(one_line);
    component.licenses = package.license.as_deref().map(|license| Licenses(vec![choice(license)]));
    component.properties =
        Some(Properties(into.iter().map(|what| Property::new(LINKED_INTO, what)).collect()));
    if package.source.is_some() {
        component.purl = Some(Purl::new("cargo", name, &version).with_context(|| format!("crate {name}"))?);
        let repository = package.repository.as_deref();
        component.external_references = repository
            .and_then(|url| Uri::try_from(url.to_owned()).ok())
            .map(|url| reference_to(ExternalReferenceType::Vcs, url));
    }
    Ok(component)
}

/// What every program has in it that is no crate of this workspace's graph.
fn runtimes(built: &Build) -> Result<Vec<Component>> {
    let rust = |name: &str, version: &str, into: &str| -> Result<Component> {
        let bom_ref = format!("{name}@{version}");
        let mut component = Component::new(Classification::Library, name, version, Some(bom_ref));
        component.licenses = Some(Licenses(vec![choice("MIT OR Apache-2.0")]));
        component.purl = Some(Purl::new("generic", name, version).with_context(|| name.to_owned())?);
        component.properties = Some(Properties(vec![Property::new(LINKED_INTO, into)]));
        Ok(component)
    };
    let mut musl = Component::new(Classification::Library, "musl", "", Some("musl".to_owned()));
    // Rust's library brings its own and does not tell which.
    musl.version = None;
    musl.description =
        Some(one_line(&format!("the C library that rust-std {} for {} brings", built.rustc, built.target)));
    musl.licenses = Some(Licenses(vec![choice("MIT")]));
    musl.properties = Some(Properties(vec![Property::new(LINKED_INTO, "binaries")]));
    Ok(vec![
        musl,
        rust("rust-core", &built.kernel_rustc, "ebpf")?,
        rust("rust-std", &built.rustc, "binaries")?,
    ])
}

/// The image, which all else is part of.
fn image(name: &ImageName, digest: &str) -> Result<Component> {
    let hex = digest.strip_prefix("sha256:").context("the image's digest is no SHA-256")?;
    let bom_ref = format!("{}@{digest}", name.repository());
    let mut image = Component::new(Classification::Container, name.short(), name.tag(), Some(bom_ref));
    image.hashes =
        Some(Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(hex.to_owned()) }]));
    image.purl = Some(Purl::new("oci", name.short(), digest).context("the image's name")?);
    image.licenses = Some(Licenses(vec![choice(env!("CARGO_PKG_LICENSE"))]));
    Ok(image)
}

/// An expression where it is one, the author's own words where not.
fn choice(license: &str) -> LicenseChoice {
    match SpdxExpression::parse_lax(license.to_owned()) {
        Ok(expression) => LicenseChoice::Expression(expression),
        Err(_) => LicenseChoice::license(license),
    }
}

fn one_line(text: &str) -> NormalizedString {
    NormalizedString::new(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn reference_to(kind: ExternalReferenceType, url: Uri) -> ExternalReferences {
    ExternalReferences(vec![ExternalReference::new(kind, external_reference::Uri::Url(url))])
}

/// A UUID made of the digest (RFC 9562, version 8), so that two bills of one image are one bill.
fn serial_number(digest: &str) -> Result<UrnUuid> {
    let hex: Vec<char> = digest.strip_prefix("sha256:").unwrap_or_default().chars().take(32).collect();
    let part = |from: usize, to: usize| -> String { hex.get(from..to).unwrap_or_default().iter().collect() };
    let uuid = format!(
        "urn:uuid:{}-{}-8{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    );
    UrnUuid::new(uuid).map_err(|error| anyhow!("`{digest}` makes no serial number: {error:?}"))
}
