//! An image by the OCI image specification: blobs named by their digests, a manifest, an index; as a folder, or as one
//! file that `docker load` takes as well.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use oci_spec::image::{
    self as oci, Arch, ConfigBuilder, Descriptor, HistoryBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    layer::{Entry, Layer},
    name::ImageName,
    source::Source,
};
use crate::repo;

/// What a container of it runs.
pub(super) const ENTRYPOINT: &str = "/usr/local/bin/meshd";

/// Annotation by which containerd names what it imports.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A whole image, in memory.
pub(super) struct Image {
    /// By path within the layout.
    files: BTreeMap<String, Vec<u8>>,
    manifest: Descriptor,
    time: u64,
    size: usize,
}

impl Image {
    /// An image of one layer.
    pub(super) fn assemble(layer: &Layer, source: &Source, name: &ImageName) -> Result<Self> {
        let mut files = BTreeMap::new();
        let layer_blob = blob(&mut files, MediaType::ImageLayerGzip, layer.compressed().to_owned())?;
        let configuration = json_bytes(&configuration(layer, source)?)?;
        let config_blob = blob(&mut files, MediaType::ImageConfig, configuration)?;
        let docker = json!([{
            "Config": blob_path(&config_blob),
            "Layers": [blob_path(&layer_blob)],
            "RepoTags": [name.to_string()],
        }]);
        let manifest = ImageManifestBuilder::default()
            .schema_version(oci::SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config_blob)
            .layers(vec![layer_blob])
            .annotations(annotations(source)?)
            .build()?;
        let mut manifest = blob(&mut files, MediaType::ImageManifest, json_bytes(&manifest)?)?;
        let size = files.values().map(Vec::len).sum();
        manifest.set_platform(Some(PlatformBuilder::default().architecture(arch()).os(Os::Linux).build()?));
        manifest.set_annotations(Some(HashMap::from([
            (oci::ANNOTATION_REF_NAME.to_owned(), name.tag().to_owned()),
            (CONTAINERD_NAME.to_owned(), name.in_full()),
        ])));
        let index = ImageIndexBuilder::default()
            .schema_version(oci::SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest.clone()])
            .build()?;
        let marker = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
        files.insert("index.json".to_owned(), json_bytes(&index)?);
        files.insert("oci-layout".to_owned(), json_bytes(&marker)?);
        // What `docker load` goes by; in a layout it is one file more that nobody asks for.
        files.insert("manifest.json".to_owned(), json_bytes(&docker)?);
        Ok(Self { files, manifest, time: source.time, size })
    }

    /// The manifest's digest, by which the image is pulled and pinned.
    pub(super) fn digest(&self) -> &str {
        self.manifest.digest().as_ref()
    }

    /// What is pulled: the layer, its configuration, the manifest.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Writes the layout, in place of one that is there. A reader sees either or none, never a part.
    pub(super) fn write_layout(&self, dir: &Path) -> Result<()> {
        if dir.exists() && !dir.join("oci-layout").is_file() && fs::read_dir(dir)?.next().is_some() {
            bail!("{} holds something that is no OCI layout; give another folder with --out", dir.display());
        }
        let aside = dir.with_extension(format!("new-{}", std::process::id()));
        for (path, bytes) in self.files.iter().filter(|(path, _)| *path != "manifest.json") {
            repo::write_atomically(&aside.join(path), bytes, 0o644)?;
        }
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::rename(&aside, dir).with_context(|| format!("cannot write {}", dir.display()))
    }

    /// Writes the layout as a tar, with Docker's own manifest in it.
    pub(super) fn write_archive(&self, mut to: impl Write) -> Result<()> {
        let mut entries = vec![Entry::folder("blobs", 0o755), Entry::folder("blobs/sha256", 0o755)];
        entries.extend(self.files.iter().map(|(path, bytes)| Entry::file(path, 0o644, bytes.clone())));
        let archive = Layer::write(&entries, self.time)?;
        to.write_all(archive.tar())?;
        to.flush()?;
        Ok(())
    }
}

/// `sha256:...` of some bytes.
pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(bytes)))
}

/// The architecture that images are built for: the machine's own.
pub(super) fn arch() -> Arch {
    Arch::from(match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    })
}

fn blob(files: &mut BTreeMap<String, Vec<u8>>, kind: MediaType, bytes: Vec<u8>) -> Result<Descriptor> {
    let digest = sha256(&bytes).parse::<oci::Digest>()?;
    let descriptor = Descriptor::new(kind, bytes.len() as u64, digest);
    files.insert(blob_path(&descriptor), bytes);
    Ok(descriptor)
}

fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest().digest())
}

/// JSON with its keys in order: the crate's own maps have none.
fn json_bytes(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut value: Value = serde_json::to_value(value).context("cannot write JSON")?;
    value.sort_all_objects();
    serde_json::to_vec(&value).context("cannot write JSON")
}

/// Where the binaries are, and mimalloc as an agent should have it: what was freed goes back after 10 ms instead of a second, and
/// no huge pages. In a cluster of 50,000 pods an agent takes 248 MiB at most with these, and 302 without (docs/benchmarks.md).
const ENVIRONMENT: [&str; 3] = ["PATH=/usr/local/bin", "MIMALLOC_PURGE_DELAY=10", "MIMALLOC_ALLOW_THP=0"];

fn configuration(layer: &Layer, source: &Source) -> Result<oci::ImageConfiguration> {
    let config = ConfigBuilder::default()
        .user("0:0")
        .working_dir("/")
        .env(ENVIRONMENT.map(str::to_owned).to_vec())
        .entrypoint(vec![ENTRYPOINT.to_owned()])
        .labels(annotations(source)?)
        .stop_signal("SIGTERM")
        .build()?;
    let history =
        HistoryBuilder::default().created(source.created()?).created_by("cargo xtask image").build()?;
    let root = RootFsBuilder::default().typ("layers").diff_ids(vec![layer.diff_id()]).build()?;
    Ok(ImageConfigurationBuilder::default()
        .created(source.created()?)
        .architecture(arch())
        .os(Os::Linux)
        .config(config)
        .rootfs(root)
        .history(vec![history])
        .build()?)
}

/// The same on the manifest and, as labels, in the configuration: some tools read one, some the other.
fn annotations(source: &Source) -> Result<HashMap<String, String>> {
    let mut annotations = HashMap::from([
        (oci::ANNOTATION_TITLE, "mesh".to_owned()),
        (oci::ANNOTATION_DESCRIPTION, "meshd, the node agent and CA of the mesh, and meshctl".to_owned()),
        (oci::ANNOTATION_VERSION, source.version().to_owned()),
        (oci::ANNOTATION_LICENSES, env!("CARGO_PKG_LICENSE").to_owned()),
        (oci::ANNOTATION_CREATED, source.created()?),
    ]);
    if let Some(revision) = &source.revision {
        annotations.insert(oci::ANNOTATION_REVISION, revision.clone());
    }
    Ok(annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}
