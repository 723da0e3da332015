//! The writers of layers, layouts and bills. Their input is small and made here; that the real binaries run in the real
//! image is checked whenever one is built (`proof`).
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::read::GzDecoder;
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, OciLayout};

use super::{
    build::Build,
    layer::{Entry, Layer},
    layout::{ENTRYPOINT, Image, arch, sha256},
    name::ImageName,
    proof, root, sbom,
    source::Source,
};
use crate::{process, repo};

const TIME: u64 = 1_750_000_000;

fn source(time: u64) -> Source {
    Source { revision: Some("0123456789abcdef0123456789abcdef01234567".to_owned()), time }
}

fn name() -> ImageName {
    "registry.example/team/mesh:0.1.0".parse().expect("it is a name")
}

fn entries(program: &[u8]) -> Vec<Entry> {
    let mut entries = root::skeleton();
    entries.push(Entry::file("usr/local/bin/meshd", 0o755, program.to_owned()));
    entries
}

fn image(program: &[u8], time: u64) -> Image {
    let layer = Layer::write(&entries(program), time).expect("a layer");
    Image::assemble(&layer, &source(time), &name()).expect("an image")
}

/// Every file below a folder, by its path there.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(dir).expect("it is below").to_string_lossy().into_owned();
                found.insert(relative, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

#[test]
fn a_layer_depends_on_what_is_in_it_alone() {
    let layer = |entries: &[Entry]| Layer::write(entries, TIME).expect("a layer").compressed().to_owned();
    let (mut reversed, straight) = (entries(b"program"), layer(&entries(b"program")));
    reversed.reverse();
    assert_eq!(layer(&reversed), straight, "the order in which entries are named");
    assert_ne!(layer(&entries(b"other")), straight, "what is in a file");
    assert_ne!(
        Layer::write(&entries(b"program"), TIME + 1).expect("a layer").compressed(),
        straight,
        "the time"
    );
    assert_eq!(straight[4..8], [0; 4], "gzip's time");
}

#[test]
fn what_is_no_file_system_is_refused() {
    let folder = || Entry::folder("etc", 0o755);
    let file = |path: &str| Entry::file(path, 0o644, Vec::new());
    let cases = [
        ("twice", vec![folder(), folder()], "twice"),
        ("no folder", vec![file("etc/passwd")], "in no folder"),
        ("a file as a folder", vec![file("etc"), file("etc/passwd")], "in no folder"),
        ("absolute", vec![file("/etc")], "no path"),
        ("upwards", vec![folder(), file("etc/../x")], "no path"),
        ("empty", vec![file("")], "no path"),
    ];
    for (name, entries, reason) in cases {
        let error = Layer::write(&entries, TIME).err().expect(name);
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
}

#[test]
fn a_layer_unpacks_to_what_was_put_in() {
    let layer = Layer::write(&entries(b"program"), TIME).expect("a layer");
    let folder = tempfile::tempdir().expect("a folder");
    // By a program that knows nothing of how it was written.
    fs::write(folder.path().join("layer.tgz"), layer.compressed()).expect("it is written");
    let root = folder.path().join("root");
    fs::create_dir(&root).expect("a folder");
    process::answer(Command::new("tar").args(["-xpf", "../layer.tgz"]).current_dir(&root))
        .expect("tar takes it");
    let mode = |path: &str| fs::symlink_metadata(root.join(path)).expect(path).permissions().mode() & 0o7777;
    assert_eq!(fs::read(root.join("usr/local/bin/meshd")).expect("the program"), b"program");
    assert_eq!(mode("usr/local/bin/meshd"), 0o755);
    assert_eq!((mode("etc"), mode("etc/passwd"), mode("root"), mode("tmp")), (0o755, 0o644, 0o700, 0o1777));
    assert!(fs::read_to_string(root.join("etc/passwd")).expect("users").starts_with("root:x:0:0:"));
    assert_eq!(fs::read_link(root.join("var/run")).expect("a link"), Path::new("/run"));
    let listed = process::answer(
        Command::new("tar")
            .args(["--full-time", "--numeric-owner", "--utc", "-tvf", "../layer.tgz"])
            .current_dir(&root),
    )
    .expect("tar lists it");
    for line in listed.lines() {
        assert!(line.contains(" 0/0 ") && line.contains("2025-06-15 15:06:40"), "{line}");
    }
}

#[test]
fn every_blob_is_what_it_is_named_after() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("oci");
    let image = image(b"program", TIME);
    image.write_layout(&dir).expect("it is written");
    let marker = OciLayout::from_file(dir.join("oci-layout")).expect("the marker");
    assert_eq!(marker.image_layout_version(), "1.0.0");
    let index = ImageIndex::from_file(dir.join("index.json")).expect("the index");
    let blob = |descriptor: &Descriptor| {
        let bytes = fs::read(dir.join("blobs/sha256").join(descriptor.digest().digest())).expect("a blob");
        assert_eq!(descriptor.size(), bytes.len() as u64);
        assert_eq!(descriptor.digest().to_string(), sha256(&bytes));
        bytes
    };
    let [entry] = &index.manifests()[..] else { panic!("{index:?}") };
    assert_eq!(entry.digest().to_string(), image.digest());
    assert_eq!(entry.platform().as_ref().map(|platform| platform.architecture().clone()), Some(arch()));
    let annotations = entry.annotations().as_ref().expect("annotations");
    assert_eq!(annotations["org.opencontainers.image.ref.name"], "0.1.0");
    assert_eq!(annotations["io.containerd.image.name"], "registry.example/team/mesh:0.1.0");
    let manifest = ImageManifest::from_reader(blob(entry).as_slice()).expect("the manifest");
    let config =
        ImageConfiguration::from_reader(blob(manifest.config()).as_slice()).expect("the configuration");
    let [layer] = &manifest.layers()[..] else { panic!("{manifest:?}") };
    let mut tar = Vec::new();
    GzDecoder::new(blob(layer).as_slice()).read_to_end(&mut tar).expect("gzip");
    assert_eq!(*config.rootfs().diff_ids(), [sha256(&tar)]);
    assert_eq!(*config.architecture(), arch());
    assert_ne!(arch(), Arch::Other(std::env::consts::ARCH.to_owned()), "Go has another word for it");
    let run = config.config().as_ref().expect("how it is run");
    assert_eq!(run.entrypoint().as_deref(), Some(&[ENTRYPOINT.to_owned()][..]));
    assert_eq!(run.user().as_deref(), Some("0:0"));
    let environment = run.env().as_ref().expect("an environment");
    assert!(environment.iter().any(|entry| entry == "MIMALLOC_PURGE_DELAY=10"), "{environment:?}");
    let labels = run.labels().as_ref().expect("labels");
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(labels["org.opencontainers.image.created"], "2025-06-15T15:06:40Z");
    assert_eq!(labels["org.opencontainers.image.revision"].len(), 40);
    assert_eq!(files(&dir).len(), 5, "nothing else is there");
}

#[test]
fn the_same_input_gives_the_same_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = |name: &str, image: &Image| {
        let dir = folder.path().join(name);
        image.write_layout(&dir).expect("it is written");
        let mut archive = Vec::new();
        image.write_archive(&mut archive).expect("an archive");
        (files(&dir), archive)
    };
    // Its maps are hashed with another seed each time.
    let first = written("first", &image(b"program", TIME));
    for _ in 0..8 {
        assert!(written("again", &image(b"program", TIME)) == first, "the same image again is another one");
    }
    assert_ne!(image(b"program", TIME).digest(), image(b"other", TIME).digest());
    assert_ne!(image(b"program", TIME).digest(), image(b"program", TIME + 1).digest());
}

#[test]
fn a_layout_takes_the_place_of_one_and_of_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("oci");
    image(b"old", TIME).write_layout(&dir).expect("it is written");
    image(b"new", TIME).write_layout(&dir).expect("it is replaced");
    let index = ImageIndex::from_file(dir.join("index.json")).expect("the index");
    assert_eq!(index.manifests()[0].digest().to_string(), image(b"new", TIME).digest());
    assert_eq!(files(&dir).len(), 5, "nothing of the old one is left");
    let home = folder.path().join("home");
    fs::create_dir(&home).expect("a folder");
    fs::write(home.join("thesis.txt"), "years").expect("a file");
    let error = image(b"new", TIME).write_layout(&home).expect_err("somebody's files");
    assert!(error.to_string().contains("no OCI layout"), "{error}");
    assert!(home.join("thesis.txt").exists());
}

#[test]
fn docker_finds_what_it_looks_for_in_an_archive() {
    let mut bytes = Vec::new();
    image(b"program", TIME).write_archive(&mut bytes).expect("an archive");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut found = BTreeMap::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("its content");
        found.insert(path, content);
    }
    let manifest: serde_json::Value = serde_json::from_slice(&found["manifest.json"]).expect("JSON");
    assert_eq!(manifest[0]["RepoTags"][0], "registry.example/team/mesh:0.1.0");
    let named = |value: &serde_json::Value| found[value.as_str().expect("a path")].clone();
    ImageConfiguration::from_reader(named(&manifest[0]["Config"]).as_slice()).expect("the configuration");
    assert_eq!(named(&manifest[0]["Layers"][0])[..2], [0x1f, 0x8b]);
    assert!(found.contains_key("oci-layout") && found.contains_key("index.json"));
}

/// A static program, made by this very compiler; of the C library that the machine has, for it is the root that is tried.
fn static_program(folder: &Path) -> PathBuf {
    let (code, program) = (folder.join("program.rs"), folder.join("program"));
    let text = "fn main() { println!(\"{:?} {}\", std::env::args().collect::<Vec<_>>(), \
                std::fs::read_dir(\"/\").unwrap().count()) }";
    fs::write(&code, text).expect("the code is written");
    let mut rustc = Command::new("rustc");
    rustc.args(["-C", "target-feature=+crt-static", "-o"]).arg(&program).arg(&code).current_dir(repo::root());
    process::answer(&mut rustc).expect("rustc compiles it");
    program
}

#[test]
fn a_program_runs_in_the_root_that_is_unpacked() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = fs::read(static_program(folder.path())).expect("the program");
    let layer = Layer::write(&entries(&program), TIME).expect("a layer");
    let root = folder.path().join("root");
    tar::Archive::new(layer.tar()).unpack(&root).expect("it unpacks");
    let answer = proof::in_root(&root, ENTRYPOINT, &["--version"]).expect("it runs");
    // etc, root, run, tmp, usr, var: the machine's own root is not there.
    assert_eq!(answer, "[\"/usr/local/bin/meshd\", \"--version\"] 6\n");
    let error = proof::run(&layer).expect_err("there is no meshctl in it");
    assert!(format!("{error:#}").contains("meshctl is not in the layer"), "{error:#}");
}

#[test]
fn a_bill_names_what_is_linked_and_nothing_else() {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(repo::root())
        .other_options(["--locked".to_owned()])
        .exec()
        .expect("cargo tells");
    let id = |name: &str| {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name);
        package.unwrap_or_else(|| panic!("{name} is in the graph")).id.clone()
    };
    let built = Build {
        binaries: Vec::new(),
        userspace: vec![id("mesh-userspace"), id("mesh-common"), id("tokio"), id("bytes")],
        kernel: vec![id("mesh-ebpf"), id("mesh-common"), id("aya-ebpf")],
        target: "x86_64-unknown-linux-musl".to_owned(),
        rustc: "1.95.0".to_owned(),
        kernel_rustc: "1.96.0".to_owned(),
    };
    let digest = sha256(b"image");
    let write = || sbom::write(&built, &source(TIME), &name(), &digest).expect("a bill");
    let bytes = write();
    assert_eq!(bytes, write(), "the same bill twice");
    let bill: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let image = &bill["metadata"]["component"];
    assert_eq!(image["bom-ref"], format!("registry.example/team/mesh@{digest}"));
    assert_eq!(image["hashes"][0]["content"], digest["sha256:".len()..]);
    let components = bill["components"].as_array().expect("components");
    let names: Vec<_> = components.iter().filter_map(|component| component["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "aya-ebpf",
            "bytes",
            "mesh-common",
            "mesh-ebpf",
            "mesh-userspace",
            "tokio",
            "musl",
            "rust-core",
            "rust-std"
        ]
    );
    let component = |name: &str| components.iter().find(|one| one["name"] == name).expect(name);
    assert!(component("tokio")["purl"].as_str().expect("a purl").starts_with("pkg:cargo/tokio@1."));
    assert_eq!(component("tokio")["licenses"][0]["expression"], "MIT");
    assert_eq!(component("mesh-common")["properties"].as_array().map(Vec::len), Some(2), "it is in both");
    let edges = bill["dependencies"].as_array().expect("dependencies");
    let of = |start: &str| {
        let edge = edges.iter().find(|edge| edge["ref"].as_str().is_some_and(|of| of.starts_with(start)));
        edge.expect(start)["dependsOn"].clone()
    };
    let tokio = of("mesh-userspace@").as_array().expect("what it depends on").len();
    assert_eq!(tokio, 3, "bytes, mesh-common, tokio: what is not linked is no dependency");
    assert_eq!(of("tokio@").as_array().map(Vec::len), Some(1));
}
