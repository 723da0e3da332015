//! Who may ask: bearer tokens and the users behind them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

/// What the API server itself is addressed by.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";
const ADMINS: &str = "system:masters";
const ANONYMOUS: &str = "system:anonymous";

/// Whoever a token stands for. Made by [`Self::service`] or [`Self::user`], refined method by method.
#[derive(Clone, Debug)]
pub struct Account {
    user: User,
    audiences: Vec<String>,
    expires: Option<SystemTime>,
}

/// A user as RBAC and `TokenReview` see one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

impl Account {
    /// A service account.
    pub fn service(namespace: &str, name: &str) -> Self {
        let groups = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ];
        Self {
            user: User {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                uid: new_uid(),
                groups: groups.into(),
                extra: BTreeMap::new(),
            },
            audiences: vec![API_AUDIENCE.to_owned()],
            expires: None,
        }
    }

    /// A user of these groups; `system:masters` may do anything.
    pub fn user(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().chain(&["system:authenticated"]).map(|group| (*group).to_owned());
        let user =
            User { name: name.to_owned(), uid: new_uid(), groups: groups.collect(), extra: BTreeMap::new() };
        Self { user, audiences: vec![API_AUDIENCE.to_owned()], expires: None }
    }

    /// Who may do anything.
    pub fn admin() -> Self {
        Self::user("kubernetes-admin", &[ADMINS])
    }

    /// With a token bound to a pod.
    #[must_use]
    pub fn pod(self, name: &str, uid: &str) -> Self {
        self.extra("authentication.kubernetes.io/pod-name", name)
            .extra("authentication.kubernetes.io/pod-uid", uid)
    }

    /// With a token bound to what runs on a node.
    #[must_use]
    pub fn node(self, name: &str) -> Self {
        self.extra("authentication.kubernetes.io/node-name", name)
    }

    /// With a further attribute.
    #[must_use]
    pub fn extra(mut self, key: &str, value: &str) -> Self {
        self.user.extra.insert(key.to_owned(), vec![value.to_owned()]);
        self
    }

    /// With a token for these audiences, in place of the API server's own.
    #[must_use]
    pub fn audiences(mut self, audiences: &[&str]) -> Self {
        self.audiences = audiences.iter().map(|one| (*one).to_owned()).collect();
        self
    }

    /// With a token that is good for so long.
    #[must_use]
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires = Some(SystemTime::now() + time);
        self
    }

    fn is_current(&self) -> bool {
        self.expires.is_none_or(|end| SystemTime::now() < end)
    }

    /// Whoever this is to the API server itself.
    pub(super) fn authenticated(&self) -> Option<&User> {
        (self.is_current() && self.audiences.iter().any(|one| one == API_AUDIENCE)).then_some(&self.user)
    }

    /// The `status` of a `TokenReview` that asks for these audiences.
    pub(super) fn review(&self, wanted: &[String]) -> Value {
        if !self.is_current() {
            return refused("token has expired");
        }
        let api = [API_AUDIENCE.to_owned()];
        let wanted = if wanted.is_empty() { &api[..] } else { wanted };
        let held: Vec<&String> = wanted.iter().filter(|one| self.audiences.contains(one)).collect();
        if held.is_empty() {
            return refused(&format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                self.audiences
            ));
        }
        json!({"authenticated": true, "audiences": held, "user": self.user.json()})
    }
}

impl User {
    pub(super) fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".to_owned()],
            extra: BTreeMap::new(),
        }
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    pub(super) fn is_admin(&self) -> bool {
        self.groups.iter().any(|group| group == ADMINS)
    }

    pub(super) fn json(&self) -> Value {
        let mut user = json!({"username": self.name, "uid": self.uid, "groups": self.groups});
        if !self.extra.is_empty() {
            user["extra"] = json!(self.extra);
        }
        user
    }
}

/// The `status` of a `TokenReview` of a token that nobody has.
pub(super) fn refused(why: &str) -> Value {
    json!({"user": {}, "error": format!("[invalid bearer token, {why}]")})
}

/// A UID as the API server makes one.
pub(super) fn new_uid() -> String {
    let bits = (fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let text = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

/// A token that cannot be guessed, in the shape of a JWT, since clients look at that.
pub(super) fn new_token() -> String {
    let part = |length: usize| (0..length).map(|_| fastrand::alphanumeric()).collect::<String>();
    format!("{}.{}.{}", part(36), part(120), part(86))
}
