//! What stands in the place of a security policy that cannot be read, where nothing is known of it from before: it lets
//! nobody in whom the policy might have kept out.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::de::DeserializeOwned;

use super::authorization::{AuthorizationPolicy, AuthorizationPolicySpec, DRY_RUN};
use super::istio::{IstioMode, LabelSelector, MutualTls, PeerAuthentication, PeerAuthenticationSpec, Rest};
use super::validate::validate;
use super::yaml::Node;
use super::{Kind, Object, ObjectRef};

/// An `AuthorizationPolicy` that allows nothing, or a `PeerAuthentication` that is STRICT, for whom the document selects;
/// for its whole namespace where that cannot be read. `None` for what refuses nobody: other kinds, dry runs, AUDIT.
fn stand_in(node: Option<&Node>, reference: &ObjectRef) -> Option<Object> {
    let spec = node.and_then(|node| node.child("spec"));
    let metadata = ObjectMeta {
        name: Some(reference.name.to_string()),
        namespace: Some(reference.namespace.to_string()),
        ..ObjectMeta::default()
    };
    let selector = || read::<LabelSelector>(spec?.child("selector")?);
    let both = match reference.kind {
        Kind::AuthorizationPolicy => {
            let written = node.and_then(|node| node.child("metadata"));
            let annotations = written.and_then(|metadata| metadata.child("annotations"));
            let dry_run = annotations.and_then(|all| all.child(DRY_RUN)).and_then(|value| value.text());
            let action = spec.and_then(|spec| spec.child("action")).and_then(|action| action.text());
            if matches!(dry_run, Some("1" | "t" | "T" | "true" | "TRUE" | "True")) || action == Some("AUDIT")
            {
                return None;
            }
            let target_refs = || read(spec?.child("targetRefs")?);
            let policy = |spec| {
                let metadata = metadata.clone();
                Object::AuthorizationPolicy(Box::new(AuthorizationPolicy {
                    metadata,
                    spec,
                    rest: Rest::default(),
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
            let mtls = Some(MutualTls { mode: IstioMode::Strict, rest: Rest::default() });
            let policy = |selector| {
                let spec = PeerAuthenticationSpec {
                    selector,
                    mtls: mtls.clone(),
                    ..PeerAuthenticationSpec::default()
                };
                let metadata = metadata.clone();
                Object::PeerAuthentication(Box::new(PeerAuthentication {
                    metadata,
                    spec,
                    rest: Rest::default(),
                }))
            };
            [policy(selector()), policy(None)]
        }
        _ => return None,
    };
    both.into_iter().find(|object| validate(object).is_empty())
}

/// The same for text that is no YAML at all: for the namespace that it names, if it seems to be such a policy.
pub(super) fn of_text(text: &str) -> Option<Arc<Object>> {
    let kind = ["AuthorizationPolicy", "PeerAuthentication"].into_iter().find(|kind| text.contains(kind))?;
    let value = |field: &str| {
        let starts = |at: usize| {
            text[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && before != '-')
        };
        let (at, _) = text.match_indices(field).find(|(at, _)| starts(*at))?;
        let rest = text[at + field.len()..].trim_start_matches([' ', '"', '\'']);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '.'))?;
        Some(&rest[..end]).filter(|value| !value.is_empty())
    };
    let (namespace, name) =
        (value("namespace:").unwrap_or("default"), value("name:").unwrap_or("unreadable"));
    let reference = ObjectRef::new(Kind::from(kind.to_owned()), namespace, name);
    stand_in(None, &reference).map(Arc::new)
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
    stand_in(Some(node), reference?).map(Arc::new)
}
