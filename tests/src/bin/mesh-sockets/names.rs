//! Addresses by name, both ways.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, Result};

/// `NAME=ADDRESS:PORT`. What comes after a dot in the name is the host, what comes before it one of its ports.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    name: String,
    address: SocketAddr,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (name, address) = text.split_once('=').ok_or("write NAME=ADDRESS:PORT")?;
        let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
        Ok(Self { name: name.to_owned(), address })
    }
}

impl Name {
    /// What comes after the dot.
    fn host(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// All of them, and the ports that appeared.
#[derive(Debug)]
pub(crate) struct Names {
    names: Vec<Name>,
    ports: HashMap<u16, usize>,
}

impl Names {
    pub(crate) fn new(names: Vec<Name>) -> Self {
        Self { names, ports: HashMap::new() }
    }

    /// The address that a word stands for: a name, `HOST:PORT` for a port without a name, or an address as it is
    /// written.
    pub(crate) fn resolve(&self, word: &str) -> Result<SocketAddr> {
        let named = |word: &str| self.names.iter().find(|name| name.name == word).map(|name| name.address);
        let other_port = || {
            let (host, port) = word.rsplit_once(':')?;
            let host = self.names.iter().find(|name| name.host() == host)?;
            Some(SocketAddr::new(host.address.ip(), port.parse().ok()?))
        };
        named(word)
            .or_else(other_port)
            .or_else(|| word.parse().ok())
            .with_context(|| format!("no address is called `{word}`"))
    }

    /// How an address is printed: its name if it has one; its host's name, with the port; or as it is.
    pub(crate) fn print(&mut self, address: SocketAddr) -> String {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(name) = self.names.iter().find(|name| name.address == address) {
            return name.name.clone();
        }
        let host = self.names.iter().find(|name| name.address.ip() == address.ip()).map(Name::host);
        match host {
            Some(own @ ("self" | "self6")) => {
                format!("{own}:{}", port(&mut self.ports, address.port()))
            }
            Some(host) => format!("{host}:{}", address.port()),
            None if address.ip().is_unspecified() => {
                format!("any:{}", port(&mut self.ports, address.port()))
            }
            None if address.ip().is_loopback() => {
                format!("loopback:{}", port(&mut self.ports, address.port()))
            }
            None => address.to_string(),
        }
    }

    /// The pod's own address.
    pub(crate) fn own(&self) -> Result<IpAddr> {
        self.resolve("self").map(|address| address.ip())
    }
}

/// Of this host's ports, those that the kernel chose are numbered.
fn port(ports: &mut HashMap<u16, usize>, port: u16) -> String {
    if port < 1024 {
        return port.to_string();
    }
    let next = ports.len() + 1;
    format!("p{}", ports.entry(port).or_insert(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_printed_as_they_are_called() {
        let name = |text: &str| text.parse().expect("an address");
        let mut names = Names::new(vec![name("tcp.a=10.96.0.1:80"), name("self=10.244.1.10:0")]);
        let cases = [
            ("10.96.0.1:80", "tcp.a"),
            ("[::ffff:10.96.0.1]:80", "tcp.a"),
            ("10.96.0.1:81", "a:81"),
            ("10.244.1.10:40000", "self:p1"),
            ("10.244.1.10:30000", "self:p2"),
            ("0.0.0.0:40000", "any:p1"),
            ("[::]:0", "any:0"),
            ("127.0.0.1:80", "loopback:80"),
            ("[::1]:50000", "loopback:p3"),
            ("10.244.2.10:8080", "10.244.2.10:8080"),
        ];
        for (address, printed) in cases {
            assert_eq!(names.print(address.parse().expect("an address")), printed);
        }
        assert_eq!(names.resolve("a:9").expect("an address"), "10.96.0.1:9".parse().expect("an address"));
        assert_eq!(names.resolve("1.2.3.4:5").expect("an address"), "1.2.3.4:5".parse().expect("an address"));
        assert!(names.resolve("tcp.b").is_err());
    }
}
