//! An authority's folder as a set of named contents, for a copy of it elsewhere: a Secret of Kubernetes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use super::error::AuthorityError;
use super::files::{self, CERT, CHAIN, KEY, NEXT_CERT, NEXT_KEY, OLD_CERT, ROOT};

/// The key first: a certificate that does not belong to it is waited for.
const NAMES: [(&str, u32); 7] = [
    (KEY, 0o600),
    (NEXT_KEY, 0o600),
    (NEXT_CERT, 0o644),
    (OLD_CERT, 0o644),
    (CHAIN, 0o644),
    (ROOT, 0o644),
    (CERT, 0o644),
];

/// What an authority's folder holds, by the names of its files.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AuthorityFiles(BTreeMap<&'static str, Zeroizing<Vec<u8>>>);

impl std::fmt::Debug for AuthorityFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl AuthorityFiles {
    /// Those of `named` that an authority has.
    pub fn new(mut named: BTreeMap<String, Vec<u8>>) -> Self {
        let files = NAMES.iter().filter_map(|(name, _)| Some((*name, Zeroizing::new(named.remove(*name)?))));
        Self(files.collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names and contents.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.0.iter().map(|(name, content)| (*name, content.as_slice()))
    }

    /// What a folder holds.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(dir: &Path) -> Result<Self, AuthorityError> {
        let mut found = BTreeMap::new();
        for (name, _) in NAMES {
            let path = dir.join(name);
            match fs::read(&path) {
                Ok(content) => drop(found.insert(name, Zeroizing::new(content))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(files::file_error("read", &path)(error)),
            }
        }
        Ok(Self(found))
    }

    /// Makes a folder hold these and no others of an authority's files, each replaced by renaming.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), AuthorityError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(files::file_error("create", dir))?;
        let _held = files::lock(dir)?;
        for (name, mode) in NAMES {
            match self.0.get(name) {
                Some(content) => files::place(dir, name, content, mode)?,
                None => files::remove(dir, name)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Authority;
    use crate::model::TrustDomain;

    #[test]
    fn a_copy_is_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let roots = Authority::open(&one, &domain).unwrap().roots();
        let files = AuthorityFiles::read(&one).unwrap();
        files.write(&other).unwrap();
        fs::write(other.join(CHAIN), "of another").unwrap();
        files.write(&other).unwrap();
        assert_eq!(AuthorityFiles::read(&other).unwrap(), files);
        assert_eq!(Authority::open(&other, &domain).unwrap().roots(), roots);
        let named = files.iter().map(|(name, content)| (name.to_owned(), content.to_vec()));
        let named = named.chain([("notes".to_owned(), Vec::new())]).collect();
        assert_eq!(AuthorityFiles::new(named), files);
        assert_eq!(format!("{files:?}"), r#"{"ca-cert.pem", "ca-key.pem", "root-cert.pem"}"#);
    }
}
