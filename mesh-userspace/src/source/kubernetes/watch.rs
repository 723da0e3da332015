//! One kind, followed for as long as the agent runs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::Api;
use kube::client::ClientBuilder;
use kube::core::ApiResource;
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Client, Config};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::item::Item;
use super::kinds::Watched;
use super::observe::Observe;
use super::state::{ApiState, Phase};
use super::trouble::Trouble;
use crate::model::NodeName;
use crate::resources::{Kind, Object, ObjectRef, Rejected, decode_json};

/// Objects of one page of a listing.
const PAGE: u32 = 500;
/// Longest that a watch is left open, in seconds; some of it is chance, so that not all end together.
const WATCH_LIFE: std::ops::Range<u32> = 240..290;
/// Longest wait between two looks for a kind that is not installed.
const MAX_ABSENT: Duration = Duration::from_secs(30);
/// Longest that one question about what is served may take.
const ASK: Duration = Duration::from_secs(10);

/// What one watch tells, each with the watch's number.
#[derive(Debug)]
pub(super) enum Message {
    /// A full listing begins.
    Begin(usize),
    /// An object is as told.
    Object(usize, ObjectRef, Result<Arc<Object>, Rejected>),
    /// An object is gone.
    Gone(usize, ObjectRef),
    /// The listing is complete: what it did not name is gone.
    Complete(usize),
    /// The cluster does not have the kind.
    Absent(usize),
}

/// One watch, and whom it tells.
pub(super) struct Watch {
    pub(super) number: usize,
    pub(super) watched: &'static Watched,
    pub(super) node: NodeName,
    pub(super) state: Arc<ApiState>,
    pub(super) messages: mpsc::Sender<Message>,
}

/// Why a run of the watcher ended.
enum End {
    /// The kind is not served in this version.
    NotServed,
    /// It has to begin anew.
    Anew,
    /// Nobody listens any more.
    Closed,
}

impl Watch {
    /// Follows the kind until nobody listens.
    pub(super) async fn run(self, config: Config) {
        let mut phase = Phase::Waiting;
        let mut backoff = DefaultBackoff::default();
        loop {
            // Made anew after a refusal: a client reads its token again only now and then.
            let Some(client) = self.client(config.clone()) else {
                sleep(backoff.next().unwrap_or(MAX_ABSENT)).await;
                continue;
            };
            let mut is_served = false;
            for version in self.watched.versions {
                match self.follow(&client, version, &mut phase, &mut backoff).await {
                    End::NotServed => {}
                    End::Anew => {
                        is_served = true;
                        break;
                    }
                    End::Closed => return,
                }
            }
            if is_served {
                continue;
            }
            if !self.not_served(&client, &mut phase).await {
                return;
            }
            sleep(backoff.next().unwrap_or(MAX_ABSENT).min(MAX_ABSENT)).await;
        }
    }

    fn client(&self, config: Config) -> Option<Client> {
        let observe = Observe { kind: self.number, state: Arc::clone(&self.state) };
        match ClientBuilder::try_from(config) {
            Ok(builder) => Some(builder.with_layer(&observe).build()),
            Err(error) => {
                self.state.failed(self.number, Trouble::of(&error));
                None
            }
        }
    }

    /// The kind is served in no version; false if nobody listens.
    async fn not_served(&self, client: &Client, phase: &mut Phase) -> bool {
        // One that was not installed when it was looked for last goes on so: nothing of it is in force.
        if *phase != Phase::Absent
            && let Err(trouble) = self.see_uninstalled(client).await
        {
            self.state.failed(self.number, trouble);
            return true;
        }
        *phase = Phase::Absent;
        self.state.absent(self.number);
        self.messages.send(Message::Absent(self.number)).await.is_ok()
    }

    /// Goes on the word of what is installed, not on a path that is not there: a proxy, or an API server that is coming up,
    /// answers 404 as well, and policies that are taken for none would not hold.
    async fn see_uninstalled(&self, client: &Client) -> Result<(), Trouble> {
        let plural = self.watched.plural;
        if !self.watched.is_custom() {
            let message = format!("this is no Kubernetes API server: it does not serve {plural}");
            return Err(Trouble::new("not_found", message));
        }
        match timeout(ASK, self.is_uninstalled(client)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                let group = self.watched.group;
                let message =
                    format!("the API server answers 404 to {plural}.{group}, and says that it serves them");
                Err(Trouble::new("not_found", message))
            }
            Ok(Err(error)) => Err(Trouble::of(&error)),
            Err(_elapsed) => {
                let message =
                    format!("the API server does not say within {} s what it serves", ASK.as_secs());
                Err(Trouble::new("timeout", message))
            }
        }
    }

    /// Whether the API server says of itself that it does not have the kind.
    async fn is_uninstalled(&self, client: &Client) -> kube::Result<bool> {
        let groups = client.list_api_groups().await?.groups;
        let Some(group) = groups.iter().find(|group| group.name == self.watched.group) else {
            return Ok(true);
        };
        for version in &group.versions {
            if !self.watched.versions.contains(&version.version.as_str()) {
                continue;
            }
            let resources = client.list_api_group_resources(&version.group_version).await?.resources;
            if resources.iter().any(|resource| resource.name == self.watched.plural) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lists and watches the kind in one version.
    async fn follow(
        &self,
        client: &Client,
        version: &str,
        phase: &mut Phase,
        backoff: &mut DefaultBackoff,
    ) -> End {
        let api_version = self.watched.api_version(version);
        let kind = Kind::from(self.watched.kind.to_owned());
        let resource = ApiResource {
            group: self.watched.group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.clone(),
            kind: self.watched.kind.to_owned(),
            plural: self.watched.plural.to_owned(),
        };
        let mut wanted = watcher::Config::default().page_size(PAGE).timeout(fastrand::u32(WATCH_LIFE));
        wanted.field_selector = self.watched.field_selector(&self.node);
        let mut events = pin!(watcher(Api::<Item>::all_with(client.clone(), &resource), wanted));
        let number = self.number;
        while let Some(event) = events.next().await {
            let is_sent = match event {
                Ok(Event::Init) => self.messages.send(Message::Begin(number)).await,
                Ok(Event::InitApply(item) | Event::Apply(item)) => {
                    let object = decode_json(&api_version, &kind, item.text());
                    self.messages.send(Message::Object(number, item.reference(&kind), object)).await
                }
                Ok(Event::Delete(item)) => {
                    self.messages.send(Message::Gone(number, item.reference(&kind))).await
                }
                Ok(Event::InitDone) => {
                    backoff.reset();
                    *phase = Phase::Synced;
                    self.state.synced(number);
                    self.messages.send(Message::Complete(number)).await
                }
                Err(error) => {
                    let trouble = Trouble::of_watch(&error);
                    if trouble.is_not_found() {
                        return End::NotServed;
                    }
                    if trouble.is_gone() {
                        tracing::info!(kind = self.watched.label, reason = trouble.message, "listed anew");
                        self.state.count_error(number, trouble.reason);
                    } else {
                        self.state.failed(number, trouble.clone());
                    }
                    sleep(backoff.next().unwrap_or(MAX_ABSENT)).await;
                    let is_stuck = trouble.is_gone() && matches!(error, watcher::Error::WatchStartFailed(_));
                    if is_stuck || trouble.reason == "unauthorized" {
                        return End::Anew;
                    }
                    Ok(())
                }
            };
            if is_sent.is_err() {
                return End::Closed;
            }
        }
        End::Anew
    }
}
