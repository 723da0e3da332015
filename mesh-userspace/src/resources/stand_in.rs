//! What stands in the place of a security policy that cannot be read, where nothing is known of it from before: it lets
//! nobody in whom the policy might have kept out.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::de::DeserializeOwned;

use super::authorization::{AuthorizationPolicy, AuthorizationPolicySpec, DRY_RUN};
use super::istio::{IstioMode, LabelSelector, MutualTls, PeerAuthentication, PeerAuthenticationSpec};
use super::validate::validate;
use super::yaml::Node;
use super::{Kind, Object, ObjectRef};

/// An `AuthorizationPolicy` that allows nothing, or a `PeerAuthentication` that is STRICT, for whom the document selects;
/// for its whole namespace where that cannot be read. `None` for what refuses nobody: other kinds, dry runs, AUDIT.
pub(super) fn stand_in(node: &Node, reference: &ObjectRef) -> Option<Object> {
    let spec = node.child("spec");
    let metadata = ObjectMeta {
        name: Some(reference.name.to_string()),
        namespace: Some(reference.namespace.to_string()),
        ..ObjectMeta::default()
    };
    let selector = || read::<LabelSelector>(spec?.child("selector")?);
    let both = match reference.kind {
        Kind::AuthorizationPolicy => {
            let annotations = node.child("metadata").and_then(|metadata| metadata.child("annotations"));
            let dry_run = annotations.and_then(|all| all.child(DRY_RUN)).and_then(|value| value.text());
            let action = spec.and_then(|spec| spec.child("action")).and_then(|action| action.text());
            if dry_run == Some("true") || action == Some("AUDIT") {
                return None;
            }
            let target_refs = || read(spec?.child("targetRefs")?);
            let policy = |spec| {
                let metadata = metadata.clone();
                Object::AuthorizationPolicy(Box::new(AuthorizationPolicy {
                    metadata,
                    spec,
                    rest: Default::default(),
                }))
            };
            let narrow = AuthorizationPolicySpec {
                selector: selector(),
                target_refs: target_refs().unwrap_or_default(),
                ..AuthorizationPolicySpec::default()
            };
            [policy(narrow), policy(AuthorizationPolicySpec::default())]
        }
        Kind::PeerAuthentication => {
            let mtls = Some(MutualTls { mode: IstioMode::Strict, rest: Default::default() });
            let policy = |selector| {
                let spec = PeerAuthenticationSpec { selector, mtls: mtls.clone(), ..Default::default() };
                let metadata = metadata.clone();
                Object::PeerAuthentication(Box::new(PeerAuthentication {
                    metadata,
                    spec,
                    rest: Default::default(),
                }))
            };
            [policy(selector()), policy(None)]
        }
        _ => return None,
    };
    both.into_iter().find(|object| validate(object).is_empty())
}

fn read<T: DeserializeOwned>(node: &Node) -> Option<T> {
    serde_path_to_error::deserialize(node).ok()
}

/// Whether the object's absence would let in whom it keeps out.
pub(crate) const fn guards(kind: &Kind) -> bool {
    matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication)
}

/// As an object that is shared.
pub(super) fn shared(node: &Node, reference: Option<&ObjectRef>) -> Option<Arc<Object>> {
    stand_in(node, reference?).map(Arc::new)
}
