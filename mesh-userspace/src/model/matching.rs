//! Which connections a route is for.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Workload;

/// One alternative of a route's `match`: all that it says must hold. What cannot be told of a connection (a port, a gateway)
/// was decided when the route was translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionMatch {
    /// `sourceNamespace`, and the namespaces that a rule is exported to: the client's workload is in one of them; empty: any,
    /// and clients of which nothing is known.
    pub source_namespaces: Vec<Arc<str>>,
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
        let has_name = |name| self.sni_hosts.iter().any(|host| host.has(name));
        self.holds_but_for_name(connection)
            && (self.sni_hosts.is_empty() || connection.server_name.is_some_and(has_name))
    }

    /// Whether it holds for a connection as far as that can be told without its server name.
    pub fn holds_but_for_name(&self, connection: &Connecting<'_>) -> bool {
        let is_in = |source: &Workload| self.source_namespaces.contains(&source.namespace);
        let has_labels = |source: &Workload| {
            self.source_labels.iter().all(|(key, value)| source.labels.get(key) == Some(value))
        };
        (self.source_namespaces.is_empty() || connection.source.is_some_and(is_in))
            && (self.source_labels.is_empty() || connection.source.is_some_and(has_labels))
            && self.source_subnet.is_none_or(|subnet| subnet.contains(&connection.source_address))
            && (self.destination_subnets.is_empty()
                || self.destination_subnets.iter().any(|subnet| subnet.contains(&connection.asked)))
    }

    /// Whether the server name must be known to tell.
    pub const fn asks_server_name(&self) -> bool {
        !self.sni_hosts.is_empty()
    }

    /// Whether it holds for every connection.
    pub fn always(&self) -> bool {
        *self == Self::default()
    }
}

/// What it asks for, for whoever reads it.
impl fmt::Display for ConnectionMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> =
            self.source_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let subnets: Vec<String> = self.destination_subnets.iter().map(ToString::to_string).collect();
        let names: Vec<&str> = self.sni_hosts.iter().map(ServerNames::as_str).collect();
        let namespaces: Vec<&str> = self.source_namespaces.iter().map(|one| &**one).collect();
        let source_subnet: Vec<String> = self.source_subnet.iter().map(ToString::to_string).collect();
        let parts = [
            ("client in namespace", namespaces.join(" or ")),
            ("client with", labels.join(" and ")),
            ("client from", source_subnet.join(" or ")),
            ("asks for", subnets.join(" or ")),
            ("server name", names.join(" or ")),
        ];
        let told: Vec<String> = parts
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(what, value)| format!("{what} {value}"))
            .collect();
        f.write_str(if told.is_empty() { "every connection" } else { "" })?;
        f.write_str(&told.join(", "))
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
                ConnectionMatch { source_namespaces: vec!["shop".into()], ..Default::default() },
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
            // Whether it holds once the name is known is not told before.
            assert_eq!(one.holds_but_for_name(&connection), holds || one.asks_server_name(), "{name}");
            assert_eq!(one.always(), name == "nothing");
        }
    }

    #[test]
    fn what_is_asked_can_be_read() {
        assert_eq!(ConnectionMatch::default().to_string(), "every connection");
        let all = ConnectionMatch {
            source_namespaces: vec!["shop".into(), "bank".into()],
            source_labels: [("app".to_owned(), "web".to_owned())].into(),
            source_subnet: Some("10.244.1.0/24".parse().unwrap()),
            destination_subnets: vec!["10.96.0.0/16".parse().unwrap()],
            sni_hosts: vec![ServerNames::new("*.Example.com")],
        };
        let wanted = "client in namespace shop or bank, client with app=web, client from 10.244.1.0/24, asks for 10.96.0.0/16, \
                      server name *.example.com";
        assert_eq!(all.to_string(), wanted);
    }
}
