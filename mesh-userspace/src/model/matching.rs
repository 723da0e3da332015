//! Which connections a route is for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Workload;

/// One alternative of a route's `match`: all that it says must hold. What cannot be told of a connection (a port, a gateway)
/// was decided when the route was translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionMatch {
    /// `sourceNamespace`.
    pub source_namespace: Option<Arc<str>>,
    /// `sourceLabels`: the client's workload has all of them.
    pub source_labels: BTreeMap<String, String>,
    /// `sourceSubnet`.
    pub source_subnet: Option<IpNet>,
    /// `destinationSubnets`: the address that was asked for is in one of them; empty: any.
    pub destination_subnets: Vec<IpNet>,
    /// `sniHosts`: the server name of the client's TLS is one of them; empty: any, and none.
    pub sni_hosts: Vec<ServerNames>,
}

/// A server name, or with `*.` in front all names below one (RFC 6125 wildcards, but of any depth, as Envoy has them); `*`: every name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerNames(Arc<str>);

/// What a route can tell of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Connecting<'a> {
    /// The client's workload, where it is known.
    pub source: Option<&'a Workload>,
    /// The client's address.
    pub source_address: IpAddr,
    /// The address that was asked for.
    pub asked: IpAddr,
    /// The server name that its TLS asks for, once that was looked at.
    pub server_name: Option<&'a str>,
}

impl ConnectionMatch {
    /// Whether it holds for a connection.
    pub fn holds(&self, connection: &Connecting<'_>) -> bool {
        let namespace = self.source_namespace.as_deref();
        let labels = |source: &Workload| {
            self.source_labels.iter().all(|(key, value)| source.labels.get(key) == Some(value))
        };
        namespace.is_none_or(|wanted| connection.source.is_some_and(|source| *source.namespace == *wanted))
            && (self.source_labels.is_empty() || connection.source.is_some_and(labels))
            && self.source_subnet.is_none_or(|subnet| subnet.contains(&connection.source_address))
            && (self.destination_subnets.is_empty()
                || self.destination_subnets.iter().any(|subnet| subnet.contains(&connection.asked)))
            && (self.sni_hosts.is_empty()
                || connection
                    .server_name
                    .is_some_and(|name| self.sni_hosts.iter().any(|host| host.has(name))))
    }

    /// Whether the server name must be known to tell.
    pub fn asks_server_name(&self) -> bool {
        !self.sni_hosts.is_empty()
    }

    /// Whether it holds for every connection.
    pub fn always(&self) -> bool {
        *self == Self::default()
    }
}

impl ServerNames {
    /// As written; names are compared in lower case.
    pub fn new(written: &str) -> Self {
        Self(written.to_ascii_lowercase().into())
    }

    /// Whether a name is one of them.
    pub fn has(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match self.0.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => *self.0 == *name,
        }
    }

    /// As written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names() {
        for (written, name, has) in [
            ("www.example.com", "www.example.com", true),
            ("www.example.com", "WWW.Example.COM.", true),
            ("www.example.com", "example.com", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*", "anything", true),
            ("*", "", false),
        ] {
            assert_eq!(ServerNames::new(written).has(name), has, "{written} {name}");
        }
    }

    #[test]
    fn all_that_is_said_must_hold() {
        let connection = Connecting {
            source: None,
            source_address: "10.244.1.5".parse().unwrap(),
            asked: "10.96.0.7".parse().unwrap(),
            server_name: None,
        };
        let subnet = |text: &str| text.parse().unwrap();
        let cases: [(&str, ConnectionMatch, bool); 6] = [
            ("nothing", ConnectionMatch::default(), true),
            (
                "a subnet of destinations",
                ConnectionMatch { destination_subnets: vec![subnet("10.96.0.0/16")], ..Default::default() },
                true,
            ),
            (
                "another",
                ConnectionMatch { destination_subnets: vec![subnet("10.97.0.0/16")], ..Default::default() },
                false,
            ),
            (
                "the source's",
                ConnectionMatch { source_subnet: Some(subnet("10.244.2.0/24")), ..Default::default() },
                false,
            ),
            (
                "a namespace that is not known",
                ConnectionMatch { source_namespace: Some("shop".into()), ..Default::default() },
                false,
            ),
            (
                "a server name where there is none",
                ConnectionMatch { sni_hosts: vec![ServerNames::new("*")], ..Default::default() },
                false,
            ),
        ];
        for (name, one, holds) in cases {
            assert_eq!(one.holds(&connection), holds, "{name}");
        }
    }
}
