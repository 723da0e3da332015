//! kube-proxy's rules in nftables, asked over netlink (`linux/netfilter/nf_tables.h`): its own table in nftables mode, its
//! chains in the tables of `iptables-nft` otherwise. What `iptables-legacy` holds is not seen.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use nix::sys::time::TimeVal;

/// `NFNL_SUBSYS_NFTABLES`, the high byte of a message's type.
const NFTABLES: u16 = 10 << 8;
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, resource.
const GENERIC: usize = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_NAME`.
const CHAIN: u16 = 3;

/// What of kube-proxy's is in the tables of the calling thread's network namespace.
pub(super) fn kube_proxy_rules() -> io::Result<Option<String>> {
    if dump(GET_TABLE, |table, _| table == "kube-proxy")? {
        return Ok(Some("the nftables table kube-proxy".to_owned()));
    }
    let found = dump(GET_CHAIN, |table, chain| table == "nat" && chain == Some("KUBE-SERVICES"))?;
    Ok(found.then(|| "the iptables chain KUBE-SERVICES".to_owned()))
}

/// Whether one of the objects satisfies `is`, given its table and, for a chain, its name.
fn dump(kind: u16, is: impl Fn(&str, Option<&str>) -> bool) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, flags, Some(SockProtocol::NetlinkNetFilter))?;
    // The kernel answers at once; this is for a kernel that does not.
    nix::sys::socket::setsockopt(&netlink, nix::sys::socket::sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    let mut request = Vec::with_capacity(HEADER + GENERIC);
    request.extend(u32::try_from(HEADER + GENERIC).unwrap_or_default().to_ne_bytes());
    request.extend((NFTABLES | kind).to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    // Sequence number, port, and a family of 0: all of them.
    request.extend([0; 8 + GENERIC]);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut found = false;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match messages(&buffer[..length], &is)? {
            Answer { found: true, .. } => found = true,
            Answer { last: true, .. } => return Ok(found),
            Answer { .. } => continue,
        }
        // The rest of the dump is of no interest.
        return Ok(found);
    }
}

struct Answer {
    found: bool,
    last: bool,
}

fn messages(mut bytes: &[u8], is: &impl Fn(&str, Option<&str>) -> bool) -> io::Result<Answer> {
    let mut answer = Answer { found: false, last: bytes.is_empty() };
    while let Some(header) = bytes.get(..HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = bytes.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => answer.last = true,
            NLMSG_ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => answer.found |= matches(body.get(GENERIC..).unwrap_or_default(), is),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(answer)
}

fn matches(mut attributes: &[u8], is: &impl Fn(&str, Option<&str>) -> bool) -> bool {
    let (mut table, mut chain) = (None, None);
    while let Some(header) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(value) = attributes.get(4..length) else { break };
        let text = || std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0'));
        match u16::from_ne_bytes([header[2], header[3]]) {
            TABLE => table = text(),
            CHAIN => chain = text(),
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    table.is_some_and(|table| is(table, chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, text: &str) -> Vec<u8> {
        let value = [text.as_bytes(), &[0]].concat();
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let body = [vec![0; GENERIC], attributes.concat()].concat();
        let length = u32::try_from(HEADER + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &body].concat()
    }

    #[test]
    fn chains_are_found_with_their_table() {
        let is = |table: &str, chain: Option<&str>| table == "nat" && chain == Some("KUBE-SERVICES");
        let chain = |table: &str, chain: &str| {
            message(NFTABLES | 3, &[attribute(TABLE, table), attribute(2, "x"), attribute(CHAIN, chain)])
        };
        let dump = [chain("nat", "PREROUTING"), chain("nat", "KUBE-SERVICES")].concat();
        assert!(messages(&dump, &is).unwrap().found);
        let other = [chain("filter", "KUBE-SERVICES"), message(NLMSG_DONE, &[])].concat();
        let answer = messages(&other, &is).unwrap();
        assert!(!answer.found && answer.last);
    }

    #[test]
    fn what_is_cut_off_is_no_panic() {
        let whole = message(NFTABLES, &[attribute(TABLE, "kube-proxy")]);
        let is = |table: &str, _: Option<&str>| table == "kube-proxy";
        for length in 0..whole.len() {
            let told = messages(&whole[..length], &is);
            assert!(told.is_err() || !told.is_ok_and(|answer| answer.found), "{length}");
        }
        assert!(messages(&whole, &is).unwrap().found);
    }

    #[test]
    fn the_kernel_is_asked() {
        // Whatever there is: it answers, or says why it cannot.
        if let Err(error) = kube_proxy_rules() {
            assert!(error.raw_os_error().is_some(), "{error}");
        }
    }
}
