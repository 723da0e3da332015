//! The headers of an HBONE request: `baggage` (W3C, with the keys that Istio's telemetry reads), `forwarded` (RFC 7239),
//! `traceparent` (W3C Trace Context).

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::header::{FORWARDED, HeaderMap, HeaderValue};

use crate::model::Workload;

/// What the source says of itself. Informs telemetry; nothing is decided by it.
#[derive(Clone, Debug)]
pub(crate) struct Baggage(HeaderValue);

impl Baggage {
    pub(crate) fn of(source: &Workload) -> Option<Self> {
        let pairs = [
            ("k8s.namespace.name", &*source.namespace),
            ("k8s.deployment.name", &*source.workload_name),
            ("service.name", &*source.canonical_name),
            ("service.version", &*source.canonical_revision),
        ];
        let mut text = String::new();
        for (key, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}{key}={value}");
        }
        HeaderValue::from_str(&text).ok().map(Self)
    }
}

/// The headers of a request for a client.
pub(super) fn request(client: SocketAddr, baggage: Option<&Baggage>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    if let Some(Baggage(value)) = baggage {
        headers.insert("baggage", value.clone());
    }
    if let Ok(value) = HeaderValue::try_from(format!("for=\"{client}\"")) {
        headers.insert(FORWARDED, value);
    }
    let (high, low, parent) = (fastrand::u64(..), fastrand::u64(..), fastrand::u64(1..));
    if let Ok(value) = HeaderValue::try_from(format!("00-{high:016x}{low:016x}-{parent:016x}-00")) {
        headers.insert("traceparent", value);
    }
    headers
}

/// The original client that a request names. Only a hint for the port: its address is believed where the connection
/// itself comes from it.
pub(super) fn client(headers: &HeaderMap) -> Option<SocketAddr> {
    let value = headers.get(FORWARDED)?.to_str().ok()?;
    let element = value.split([',', ';']).map(str::trim).find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    element.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_survives_the_headers() {
        for client_address in ["10.1.2.3:4567", "[fd00::1]:80"] {
            let address = client_address.parse().unwrap();
            assert_eq!(client(&request(address, None)), Some(address));
        }
    }

    #[test]
    fn what_is_no_client_is_passed_over() {
        for text in ["", "for", "for=", "for=\"unknown\"", "by=\"10.0.0.1:1\"", "for=\"10.0.0.1\"", "\u{7f}"]
        {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(FORWARDED, value);
            }
            assert_eq!(client(&headers), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic(bytes: Vec<u8>) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(FORWARDED, value);
            }
            let _ = client(&headers);
        }
    }
}
