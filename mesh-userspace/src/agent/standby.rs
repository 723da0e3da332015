//! An agent that stands by: it does nothing to the node until the one before has ended, and proves meanwhile what can be
//! proved of itself. It is ready only then, so that a rolling update ends at the first node where the next agent could not serve.
//!
//! What is tried is what an agent does when it takes over, in the same order, but for what two cannot have: its needs of the
//! node, the eBPF object through the kernel's verifier (attached to nothing, pinned nowhere), the first state of its source,
//! a certificate. What holds once is not tried again. The addresses that the other has, and the pods, are left out.
//!
//! What it knows of the API server by then goes on and is the agent's when it takes over: listing a large cluster anew would
//! be seconds without anybody to serve the pods.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::report::needs;
use super::{AgentConfig, AgentError, authority, chain, mesh_config, starting};
use crate::admin::Readiness;
use crate::admin::api::CheckItem;
use crate::agent::claims::Claims;
use crate::datapath;
use crate::identity::CertificateStore;
use crate::kubernetes;
use crate::memory;
use crate::model::NodeName;
use crate::source::{self, Input, KnownAhead, Source};

/// Pause before what did not hold is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Characters of a reason: the verifier's log is longer than anybody reads in an Event.
const LONGEST_REASON: usize = 2000;

/// Waits until no other agent has what this one changes, and proves itself meanwhile. With it comes what is known of the API
/// server by then. Cancel safe.
pub(super) async fn claim(
    config: &AgentConfig,
    cgroup: &Path,
    readiness: &Readiness,
) -> Result<(Claims, Option<KnownAhead>), AgentError> {
    let (sender, claimed) = oneshot::channel();
    let (places, folder) = (config.places.clone(), cgroup.to_owned());
    // It may wait for ever, which nothing that the runtime waits for may do.
    let wait = move || drop(sender.send(Claims::awaited(&places, &folder)));
    std::thread::Builder::new()
        .name("standby".into())
        .spawn(wait)
        .map_err(starting("the thread that waits"))?;
    let mut known = None;
    let proved = async {
        prove(config, cgroup, readiness, &mut known).await;
        std::future::pending::<()>().await;
    };
    let claims = tokio::select! {
        // With nobody before it there is nothing to prove beforehand.
        biased;
        claims = claimed => claims.map_err(|_gone| AgentError::StandbyEnded)??,
        () = proved => return Err(AgentError::StandbyEnded),
    };
    Ok((claims, known))
}

/// Proves one thing after the other, each again and again until it holds.
async fn prove(config: &AgentConfig, cgroup: &Path, readiness: &Readiness, known: &mut Option<KnownAhead>) {
    until(readiness, "this node", async || able(config, cgroup).await).await;
    until(readiness, "the kernel", async || loads(config).await).await;
    until(readiness, "the source", async || {
        *known = knows(config, readiness).await?;
        Ok(())
    })
    .await;
    until(readiness, "the certificate authority", async || certified(config).await).await;
    tracing::info!("standing by: ready to take over");
    readiness.ask(|| Ok(()));
}

/// Tells what stands in the way in the log when it changes, and to whoever asks.
async fn until(
    readiness: &Readiness,
    what: &'static str,
    mut attempt: impl AsyncFnMut() -> Result<(), String>,
) {
    let mut told = None;
    readiness.set_missing(format!("standing by, not ready to take over yet: {what} is being looked at"));
    while let Err(error) = attempt().await {
        let error: String = error.chars().take(LONGEST_REASON).collect();
        readiness.set_missing(format!("standing by, and could not take over: {what}: {error}"));
        if told.as_ref() != Some(&error) {
            tracing::warn!(what, %error, "standing by, and could not take over");
            told = Some(error);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether the node and this process's rights are what an agent needs.
async fn able(config: &AgentConfig, cgroup: &Path) -> Result<(), String> {
    let (bpffs, cgroup) = (config.places.bpffs.clone(), cgroup.to_owned());
    let items = tokio::task::spawn_blocking(move || needs(&bpffs, &cgroup)).await;
    lacking(&items.map_err(|error| error.to_string())?)
}

/// What is required and not there.
fn lacking(items: &[CheckItem]) -> Result<(), String> {
    let lacking = items.iter().filter(|item| item.required && !item.ok);
    let lacking: Vec<String> =
        lacking.map(|item| format!("{}: {} ({})", item.name, item.detail, item.remedy)).collect();
    if lacking.is_empty() { Ok(()) } else { Err(lacking.join("; ")) }
}

/// Whether the kernel takes the programs and has room for their maps.
async fn loads(config: &AgentConfig) -> Result<(), String> {
    let sizes = config.kube_proxy.sizes();
    let tried = tokio::task::spawn_blocking(move || datapath::rehearse(&sizes)).await;
    tried.map_err(|error| error.to_string())?.map_err(|error| chain(&error))
}

/// What the source yields, where it is followed from now on: an API server. Files are read anew by the agent that takes over.
async fn knows(config: &AgentConfig, readiness: &Readiness) -> Result<Option<KnownAhead>, String> {
    let known = if config.kubernetes {
        let api = kubernetes::config().await.map_err(|error| chain(&error))?;
        let node = NodeName::new(config.node.as_str());
        let ahead = Source::ahead(api, node).map_err(|error| chain(&error))?;
        let api = ahead.api();
        readiness.ask(move || {
            let waits_for = api.waits_for().join(", ");
            Err(format!(
                "standing by, not ready to take over yet: the agent waits for the API server: {waits_for}"
            ))
        });
        Some(ahead.known().await.map_err(|error| chain(&error))?)
    } else {
        let source =
            Source::begin(Input::Manifests(config.manifests.clone())).map_err(|error| chain(&error))?;
        // Dropped, it ends what follows the source.
        let (_stop, stopped) = oneshot::channel::<()>();
        let feed = source::run(source, mesh_config(config), async { drop(stopped.await) }).await;
        drop(feed.map_err(|error| chain(&error))?);
        None
    };
    memory::give_back();
    Ok(known)
}

/// Whether the authority gives the agent a certificate of its own.
async fn certified(config: &AgentConfig) -> Result<(), String> {
    let own = config.outside.agent_identity(&config.trust_domain).map_err(|error| chain(&error))?;
    let (signer, _authority) = authority::signer(config).map_err(|error| chain(&error))?;
    let aliases = config.trust_domain_aliases.clone().into();
    let store = CertificateStore::accepting(Arc::clone(&signer), config.cert_ttl, aliases);
    store.certificate(&own).await.map(drop).map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, ok: bool, required: bool) -> CheckItem {
        let (name, detail, remedy) = (name.to_owned(), "is not there".to_owned(), "get it".to_owned());
        CheckItem { name, ok, required, detail, remedy, ..CheckItem::default() }
    }

    #[test]
    fn what_is_lacking_is_what_is_required_and_not_there() {
        let cases = [
            (vec![], None),
            (vec![item("a", true, true), item("b", false, false)], None),
            (vec![item("a", false, true), item("b", true, true)], Some("a: is not there (get it)")),
            (
                vec![item("a", false, true), item("b", false, true)],
                Some("a: is not there (get it); b: is not there (get it)"),
            ),
        ];
        for (items, expected) in cases {
            assert_eq!(lacking(&items).err().as_deref(), expected, "{items:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_hold_is_tried_again_until_it_does() {
        let readiness = Readiness::default();
        let tries = std::sync::atomic::AtomicU32::new(0);
        let seen = std::sync::Mutex::new(Vec::new());
        until(&readiness, "the thing", async || {
            seen.lock().unwrap().push(readiness.get().unwrap_err());
            match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Err("it is away".to_owned()),
                1 => Err("x".repeat(2 * LONGEST_REASON)),
                _ => Ok(()),
            }
        })
        .await;
        let seen = seen.into_inner().unwrap();
        assert!(seen[0].ends_with("the thing is being looked at"), "{seen:?}");
        assert!(seen[1].ends_with("could not take over: the thing: it is away"), "{seen:?}");
        assert!(seen[2].len() < LONGEST_REASON + 100 && seen.len() == 3, "{seen:?}");
    }
}
