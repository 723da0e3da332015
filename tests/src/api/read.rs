//! Get and list.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};

use super::failure::Failure;
use super::kinds::Kind;
use super::selector::Selector;
use super::store::{Key, Shelf, Stored};

/// What a list is asked for.
#[derive(Debug, Default)]
pub(super) struct Listing<'a> {
    pub(super) limit: usize,
    pub(super) after: &'a str,
    pub(super) version: &'a str,
    pub(super) exact: bool,
}

/// Where a list goes on: the revision that all its pages show, and the last key given.
struct Continue {
    revision: u64,
    key: Key,
}

impl Continue {
    fn token(&self) -> String {
        BASE64_URL_SAFE_NO_PAD
            .encode(json!({"rv": self.revision, "namespace": self.key.0, "name": self.key.1}).to_string())
    }

    fn parse(token: &str) -> Option<Self> {
        let text = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Some(Self { revision: value["rv"].as_u64()?, key: (text("namespace")?, text("name")?) })
    }
}

/// The objects that a selector means, page by page, all of one revision.
pub(super) fn list(
    shelf: &Shelf,
    revision: u64,
    version: &str,
    selector: &Selector,
    asked: &Listing<'_>,
) -> Result<Vec<u8>, Failure> {
    let (at, after) = if asked.after.is_empty() {
        (revision_of(asked, revision)?, None)
    } else {
        let from = Continue::parse(asked.after)
            .ok_or_else(|| Failure::bad_request("continue key is not valid: illegal base64 data"))?;
        (from.revision, Some(from.key))
    };
    let gone = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results.";
    let was = if at < revision {
        shelf.undo(at).ok_or_else(|| {
            if after.is_some() {
                Failure::expired(gone)
            } else {
                Failure::expired(format!("The provided resource version {at} is too old"))
            }
        })?
    } else {
        std::collections::BTreeMap::new()
    };
    // From its cache, which it is when any version will do, the real one gives everything at once.
    let limit =
        if asked.limit == 0 || (asked.version == "0" && after.is_none()) { usize::MAX } else { asked.limit };
    let (page, more) = if was.is_empty() {
        take(shelf.after(after.as_ref()), selector, limit)
    } else {
        let mut merged: std::collections::BTreeMap<&Key, &Arc<Stored>> =
            shelf.after(after.as_ref()).collect();
        for (key, object) in &was {
            match object {
                Some(object) if after.as_ref().is_none_or(|after| key > after) => {
                    merged.insert(key, object);
                }
                _ => {
                    merged.remove(key);
                }
            }
        }
        take(merged.into_iter(), selector, limit)
    };
    let mut metadata = json!({"resourceVersion": at.to_string()});
    if let (true, Some(last)) = (more, page.last()) {
        let key = (last.namespace.clone(), last.name.clone());
        metadata["continue"] = Continue { revision: at, key }.token().into();
    }
    let kind = &shelf.kind;
    let api_version = kind.api_version(version);
    let mut body = format!(
        r#"{{"kind":"{}List","apiVersion":"{api_version}","metadata":{metadata},"items":["#,
        kind.kind
    )
    .into_bytes();
    // Objects of built-in resources do not say in a list what they are.
    let types = kind.custom.then_some((kind.kind.as_str(), api_version.as_str()));
    for (number, object) in page.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        object.write(types, &mut body);
    }
    body.extend_from_slice(b"]}\n");
    Ok(body)
}

fn take<'a>(
    objects: impl Iterator<Item = (&'a Key, &'a Arc<Stored>)>,
    selector: &Selector,
    limit: usize,
) -> (Vec<&'a Arc<Stored>>, bool) {
    let mut page = Vec::new();
    for (_, object) in objects.filter(|(_, object)| selector.matches(object)) {
        if page.len() == limit {
            return (page, true);
        }
        page.push(object);
    }
    (page, false)
}

fn revision_of(asked: &Listing<'_>, now: u64) -> Result<u64, Failure> {
    if asked.version.is_empty() || asked.version == "0" {
        return Ok(now);
    }
    let wanted = parse_version(asked.version)?;
    if wanted > now {
        return Err(Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!("Too large resource version: {wanted}, current: {now}"),
        ));
    }
    Ok(if asked.exact { wanted } else { now })
}

/// A `resourceVersion` as a client gives it back.
pub(super) fn parse_version(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_not_a_number| {
        Failure::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: invalid syntax"
        ))
    })
}

/// An object, complete.
pub(super) fn whole(kind: &Kind, version: &str, object: &Stored) -> Vec<u8> {
    let mut body = Vec::new();
    object.write(Some((&kind.kind, &kind.api_version(version))), &mut body);
    body.push(b'\n');
    body
}
