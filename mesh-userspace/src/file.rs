//! Files that others read while they are replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Writes a file aside and puts it in place, so that nobody ever sees a part of it. The name aside ends in `.new`, which no
/// runtime takes for a configuration.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_with(path, mode, |file| file.write_all(bytes))
}

/// The same, where the content is written a part at a time.
pub(crate) fn replace_with(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let aside = aside(path);
    // One that a process left behind may have another mode, or be another's.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&aside)?;
    let written = write(&mut file).and_then(|()| file.sync_all()).and_then(|()| {
        // Whatever the umask was.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&aside, path)
    });
    if written.is_err() {
        // What it was for has failed already.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Where a file is written before it is put in place: what a process that was killed meanwhile has left.
pub(crate) fn aside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Makes the folder that a file is to be in (0700), if it is missing.
pub(crate) fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| !folder.exists()) {
        Some(folder) => fs::DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

/// Copies a file, atomically, where the copy is missing or different; returns whether it was.
pub(crate) fn copy_file(from: &Path, to: &Path, mode: u32) -> io::Result<bool> {
    let wanted = File::open(from)?;
    if let Ok(held) = File::open(to) {
        let (is, should) = (held.metadata()?, wanted.metadata()?);
        let same_size = is.len() == should.len() && is.permissions().mode() & 0o777 == mode;
        if same_size && is_equal(wanted.try_clone()?, held)? {
            return Ok(false);
        }
    }
    let mut bytes = Vec::new();
    File::open(from)?.read_to_end(&mut bytes)?;
    replace_file(to, &bytes, mode).map(|()| true)
}

fn is_equal(a: File, b: File) -> io::Result<bool> {
    let (mut a, mut b) = (BufReader::with_capacity(1 << 16, a), BufReader::with_capacity(1 << 16, b));
    loop {
        let (left, right) = (a.fill_buf()?, b.fill_buf()?);
        let length = left.len().min(right.len());
        if length == 0 {
            return Ok(left.len() == right.len());
        }
        if left[..length] != right[..length] {
            return Ok(false);
        }
        a.consume(length);
        b.consume(length);
    }
}
