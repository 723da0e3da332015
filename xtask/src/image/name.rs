//! An image's name and tag, as registries and Docker write them.

use std::{fmt, str::FromStr};

use anyhow::{Error, Result, bail};

/// `[REGISTRY/]NAME:TAG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageName {
    repository: String,
    tag: String,
}

impl ImageName {
    /// What an image is called that nobody has named.
    pub(super) fn of_version(version: &str) -> Result<Self> {
        format!("mesh:{version}").parse()
    }

    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    /// The last part of the path: `mesh` of `registry.example/team/mesh`.
    pub(super) fn short(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(&self.repository)
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// With the registry that Docker and containerd assume where none is named.
    pub(super) fn in_full(&self) -> String {
        match self.repository.split_once('/') {
            Some((host, _)) if host == "localhost" || host.contains(['.', ':']) => self.to_string(),
            Some(_) => format!("docker.io/{self}"),
            None => format!("docker.io/library/{self}"),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((repository, tag)) = text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) else {
            bail!("it has no tag: write NAME:TAG, such as registry.example/mesh:0.1.0");
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let (host, path) = match repository.split_once('/') {
            Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => (Some(host), path),
            _ => (None, repository),
        };
        if let Some(host) = host
            && !host.chars().all(|c| plain(c) || c.is_ascii_uppercase() || c == ':')
        {
            bail!("`{host}` is no registry: HOST or HOST:PORT");
        }
        for part in path.split('/') {
            let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            if !part.chars().all(plain) || !part.starts_with(ends) || !part.ends_with(ends) {
                bail!("`{part}` cannot be part of an image's name: a-z, 0-9, and . _ - within");
            }
        }
        let of_tag = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if tag.is_empty() || tag.len() > 128 || !tag.chars().all(of_tag) || tag.starts_with(['.', '-']) {
            bail!("`{tag}` is no tag: up to 128 of a-z, A-Z, 0-9, and . _ -");
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let cases = [
            ("mesh:0.1.0", Some("docker.io/library/mesh:0.1.0")),
            ("team/mesh:0.1.0", Some("docker.io/team/mesh:0.1.0")),
            ("ghcr.io/team/mesh:v1", Some("ghcr.io/team/mesh:v1")),
            ("localhost:5000/mesh:v1", Some("localhost:5000/mesh:v1")),
            ("localhost/mesh:v1", Some("localhost/mesh:v1")),
            ("mesh", None),
            ("localhost:5000/mesh", None),
            ("Mesh:1", None),
            ("mesh:", None),
            ("mesh:-1", None),
            ("mesh/:1", None),
            ("a//b:1", None),
            ("mesh:a b", None),
        ];
        for (text, full) in cases {
            let name = text.parse::<ImageName>().ok();
            assert_eq!(name.as_ref().map(ImageName::in_full).as_deref(), full, "{text}");
            assert_eq!(name.map(|name| name.to_string()).as_deref(), full.map(|_| text), "{text}");
        }
    }
}
