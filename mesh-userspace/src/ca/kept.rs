//! What Kubernetes keeps of an authority: its files in a Secret, so that they outlive its pod and all its replicas have the
//! same, and its roots in a `ConfigMap`, which agents mount.
//!
//! Both objects are there before it, empty: it needs no right to make any. Whoever of several authorities writes the empty
//! Secret first has made the root; the others lose by its resourceVersion and take that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, PostParams};

use super::{CaConfig, ObjectName};
use crate::identity::ca::pem;
use crate::identity::{Authority, AuthorityError, AuthorityFiles};
use crate::kubernetes::{self, KubernetesError};
use crate::model::TrustDomain;

/// How often both objects are looked at.
const LOOK: Duration = Duration::from_secs(15);
/// How often it is tried again while the roots are not published: agents wait for them.
const RETRY: Duration = Duration::from_secs(1);
/// Longest that one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(4);
/// So many times another authority may be first.
const TRIES: usize = 5;
/// What the roots are called in the `ConfigMap`, as in Istio's.
const ROOT_KEY: &str = "root-cert.pem";
/// Conflict: somebody else has written.
const CONFLICT: u16 = 409;

/// Why what Kubernetes keeps cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// No API server.
    #[error("cannot reach Kubernetes for --ca-secret and --publish-root")]
    Kubernetes(#[source] KubernetesError),
    /// It does not answer as it should.
    #[error("cannot {operation} the {kind} {object}")]
    Ask {
        /// What was tried.
        operation: &'static str,
        /// Of what kind.
        kind: &'static str,
        /// Which.
        object: ObjectName,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The object is missing.
    #[error("there is no {kind} {object}: apply the manifests that this was installed with")]
    Missing {
        /// Of what kind.
        kind: &'static str,
        /// Which.
        object: ObjectName,
    },
    /// Others were always first.
    #[error("the {kind} {object} is written by somebody else all the time")]
    Contended {
        /// Of what kind.
        kind: &'static str,
        /// Which.
        object: ObjectName,
    },
    /// The folder.
    #[error("cannot use the folder of --ca-dir")]
    Folder(#[source] AuthorityError),
}

/// See the module.
pub(super) struct Kept {
    client: Client,
    dir: PathBuf,
    secret: Option<ObjectName>,
    roots: Option<ObjectName>,
}

fn asking<'a>(
    operation: &'static str,
    kind: &'static str,
    object: &'a ObjectName,
) -> impl Fn(kube::Error) -> KeptError + 'a {
    move |source| KeptError::Ask { operation, kind, object: object.clone(), source: Box::new(source) }
}

impl Kept {
    /// Fills the folder from the Secret, or the Secret from a root made there.
    pub(super) async fn open(config: &CaConfig) -> Result<Option<Self>, KeptError> {
        if config.ca_secret.is_none() && config.publish_root.is_none() {
            return Ok(None);
        }
        let mut near = kubernetes::config().await.map_err(KeptError::Kubernetes)?;
        (near.read_timeout, near.write_timeout) = (Some(ASK_TIMEOUT), Some(ASK_TIMEOUT));
        let client = kubernetes::client(near).map_err(KeptError::Kubernetes)?;
        let kept = Self {
            client,
            dir: config.ca_dir.clone(),
            secret: config.ca_secret.clone(),
            roots: config.publish_root.clone(),
        };
        if let Some(secret) = &kept.secret {
            kept.fill(secret, &config.trust_domain).await?;
        }
        Ok(Some(kept))
    }

    /// Keeps folder and `ConfigMap` as they should be, for ever. What fails is told once and tried again.
    pub(super) async fn follow(self, authority: Arc<Authority>) {
        let mut failing = None;
        loop {
            let result = self.look(&authority).await;
            let error = result.as_ref().err().map(|error| crate::agent::chain(error));
            if error != failing
                && let Some(error) = &error
            {
                tracing::error!(error, "what Kubernetes keeps of the authority is not up to date");
            }
            failing = error;
            tokio::time::sleep(if failing.is_some() { RETRY } else { LOOK }).await;
        }
    }

    async fn look(&self, authority: &Authority) -> Result<(), KeptError> {
        if let Some(object) = &self.secret {
            let (_, files) = self.secret(object).await?;
            // One that was emptied is no authority: the last one goes on.
            if !files.is_empty() && AuthorityFiles::read(&self.dir).map_err(KeptError::Folder)? != files {
                files.write(&self.dir).map_err(KeptError::Folder)?;
            }
        }
        if let Some(object) = &self.roots {
            let roots: String = authority.roots().iter().map(|root| pem::certificate(root)).collect();
            self.publish(object, &roots).await?;
        }
        Ok(())
    }

    async fn fill(&self, object: &ObjectName, domain: &TrustDomain) -> Result<(), KeptError> {
        const KIND: &str = "Secret";
        for _try in 0..TRIES {
            let (mut secret, files) = self.secret(object).await?;
            if !files.is_empty() {
                return files.write(&self.dir).map_err(KeptError::Folder);
            }
            drop(Authority::open(&self.dir, domain).map_err(KeptError::Folder)?);
            let made = AuthorityFiles::read(&self.dir).map_err(KeptError::Folder)?;
            let data = made.iter().map(|(name, content)| (name.to_owned(), ByteString(content.to_vec())));
            secret.data.get_or_insert_default().extend(data);
            let api = Api::<Secret>::namespaced(self.client.clone(), &object.namespace);
            match api.replace(&object.name, &PostParams::default(), &secret).await {
                Ok(_) => {
                    tracing::info!(secret = %object, "made a root, and keep it in the Secret");
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == CONFLICT => {}
                Err(error) => return Err(asking("write", KIND, object)(error)),
            }
        }
        Err(KeptError::Contended { kind: KIND, object: object.clone() })
    }

    async fn secret(&self, object: &ObjectName) -> Result<(Secret, AuthorityFiles), KeptError> {
        const KIND: &str = "Secret";
        let api = Api::<Secret>::namespaced(self.client.clone(), &object.namespace);
        let secret = api.get_opt(&object.name).await.map_err(asking("read", KIND, object))?;
        let secret = secret.ok_or_else(|| KeptError::Missing { kind: KIND, object: object.clone() })?;
        let data = secret.data.iter().flatten();
        let named = data.map(|(name, content)| (name.clone(), content.0.clone())).collect();
        Ok((secret, AuthorityFiles::new(named)))
    }

    async fn publish(&self, object: &ObjectName, roots: &str) -> Result<(), KeptError> {
        const KIND: &str = "ConfigMap";
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &object.namespace);
        let map = api.get_opt(&object.name).await.map_err(asking("read", KIND, object))?;
        let mut map = map.ok_or_else(|| KeptError::Missing { kind: KIND, object: object.clone() })?;
        let data: &mut BTreeMap<_, _> = map.data.get_or_insert_default();
        if data.get(ROOT_KEY).is_some_and(|published| published == roots) {
            return Ok(());
        }
        data.insert(ROOT_KEY.to_owned(), roots.to_owned());
        // Another authority that was first has written the same, or the next look sees to it.
        let written = api.replace(&object.name, &PostParams::default(), &map).await;
        written
            .map(|_map| tracing::info!(map = %object, "published the roots"))
            .map_err(asking("write", KIND, object))
    }
}
