//! Signs of a kube-proxy on this node. Each may be missing (a process is not seen from another pid namespace, ports can be
//! moved or turned off, rules are written late), so all are looked for.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::netfilter;

/// Longest that a port may take to answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Longest answer that is read.
const MAX_ANSWER: u64 = 8 << 10;
/// What `/proxyMode` of a kube-proxy answers.
const MODES: [&str; 4] = ["iptables", "ipvs", "nftables", "userspace"];

/// A sign of kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// A process of its name in this network namespace.
    Process(u32),
    /// Its metrics port says how it works.
    Mode(SocketAddr, String),
    /// Something answers on its health port as it does.
    Health(SocketAddr),
    /// Its rules.
    Rules(String),
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid} is kube-proxy"),
            Self::Mode(address, mode) => write!(f, "http://{address}/proxyMode answers {mode}"),
            Self::Health(address) => write!(f, "http://{address}/healthz answers as kube-proxy does"),
            Self::Rules(what) => write!(f, "{what} is there"),
        }
    }
}

/// All signs in the network namespace of the calling thread. Blocks for a few seconds at most.
pub(super) fn find() -> Vec<Evidence> {
    let mut found: Vec<Evidence> = processes().into_iter().map(Evidence::Process).collect();
    for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let (metrics, health) = (SocketAddr::new(loopback, 10249), SocketAddr::new(loopback, 10256));
        let mode = get(metrics, "/proxyMode").map(|body| body.trim().to_owned());
        found.extend(mode.ok().filter(|mode| is_mode(mode)).map(|mode| Evidence::Mode(metrics, mode)));
        found.extend(
            get(health, "/healthz").ok().filter(|answer| is_health(answer)).map(|_| Evidence::Health(health)),
        );
    }
    match netfilter::kube_proxy_rules() {
        Ok(rules) => found.extend(rules.map(Evidence::Rules)),
        // A kernel without nftables has none of its rules.
        Err(error) => tracing::debug!(%error, "nftables cannot be asked for kube-proxy's rules"),
    }
    found
}

fn is_mode(answer: &str) -> bool {
    MODES.contains(&answer)
}

fn is_health(answer: &str) -> bool {
    answer.contains("\"lastUpdated\"") && answer.contains("\"currentTime\"")
}

/// Processes of that name whose network is this one.
fn processes() -> Vec<u32> {
    let Ok(own) = fs::read_link("/proc/thread-self/ns/net") else { return Vec::new() };
    let is_it = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "kube-proxy")
            && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|netns| netns == own)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_it).collect()
}

/// The body of what an HTTP server answers, whatever its status.
fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let cases = [("iptables", true), ("nftables", true), ("ebpf", false), ("<html>", false), ("", false)];
        for (answer, expected) in cases {
            assert_eq!(is_mode(answer), expected, "{answer}");
        }
        assert!(is_health(r#"{"lastUpdated":"2026-01-01T00:00:00Z","currentTime":"x"}"#));
        assert!(!is_health("ok"));
    }

    #[test]
    fn a_body_is_read_and_a_silent_server_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(b"HTTP/1.0 503 x\r\ncontent-length: 8\r\n\r\niptables").unwrap();
            drop(stream);
            // Accepted and never answered.
            listener.accept().unwrap()
        });
        assert_eq!(get(address, "/proxyMode").unwrap(), "iptables");
        assert!(get(address, "/proxyMode").is_err());
        drop(server.join().unwrap());
    }
}
