//! Maglev tables: clients are spread over endpoints by a hash, so that each keeps its endpoint and few move when one leaves
//! (D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
//!
//! Every endpoint has a permutation of the table's entries, by its address alone, and the endpoints take turns in claiming the next
//! entry of theirs that is free. With weights an endpoint takes its turn in that share of the rounds. The table depends on the
//! endpoints and weights alone: every node, agent and kernel alike, has the same.

use std::net::{IpAddr, SocketAddr};

use mesh_common::pick;

/// Lengths of tables: primes, so that every step visits every entry. Few, for with another length every client has another entry: where
/// the number of endpoints passes from one to the next, most clients move, once.
const LENGTHS: [u32; 3] = [2_039, 16_381, 131_071];

/// Entries an endpoint: one or two more or less are then 3 % of its share.
const ENTRIES: usize = 64;

/// The length up to which tables grow by [`ENTRIES`], so that one of 2,039 is for up to 31 endpoints; beyond, an endpoint has one entry at
/// least. With two generations at once a set of up to 31 endpoints takes 4,078 of the kernel's slots (`--max-backends`), one of up to
/// 16,381 endpoints 32,762.
const GROWS_TO: usize = 16_381;

/// A table: for each entry the index of the member that has it. Empty without members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maglev(Box<[u32]>);

/// A walk over the entries.
struct Turns {
    next: u32,
    step: u32,
    /// Rounds in which the member has taken its turn, in units of the largest weight.
    taken: u128,
}

impl Maglev {
    /// The table over these endpoints, each with its weight; one without weight gets nothing.
    pub fn new(members: &[(SocketAddr, u64)]) -> Self {
        let most = members.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
        if most == 0 {
            return Self::default();
        }
        let length = length(members.iter().filter(|(_, weight)| *weight > 0).count());
        let mut turns: Vec<Turns> = members.iter().map(|(address, _)| Turns::of(*address, length)).collect();
        let mut table: Vec<Option<u32>> = vec![None; length as usize];
        let mut free = length;
        for round in 1_u128.. {
            for ((member, (_, weight)), turns) in (0_u32..).zip(members).zip(&mut turns) {
                if *weight == 0 || round * u128::from(*weight) < turns.taken {
                    continue;
                }
                turns.taken += u128::from(most);
                let entry = turns.claim(length, |entry| table[entry as usize].is_none());
                table[entry as usize] = Some(member);
                free -= 1;
                if free == 0 {
                    return Self(table.into_iter().flatten().collect());
                }
            }
        }
        unreachable!("the heaviest member claims an entry each round")
    }

    /// The key of a client that is known by its address: an enrolled pod by its first one, one from outside by its own.
    pub fn client(address: IpAddr) -> u64 {
        u64::from(pick::client(&octets(address.to_canonical())))
    }

    /// The member of each entry.
    pub fn entries(&self) -> &[u32] {
        &self.0
    }

    /// The index of the member that a client is sent to, as the kernel picks it.
    pub fn pick(&self, client: u64) -> Option<usize> {
        let length = u32::try_from(self.0.len()).ok().filter(|&length| length > 0)?;
        Some(self.0[pick::entry(client, length) as usize] as usize)
    }
}

impl Turns {
    fn of(address: SocketAddr, length: u32) -> Self {
        let hash = hash(address);
        let part = |random: u64, below: u32| u32::try_from(random % u64::from(below)).unwrap_or(0);
        Self { next: part(hash >> 32, length), step: 1 + part(hash & 0xffff_ffff, length - 1), taken: 0 }
    }

    /// The next entry of the permutation that is free; there is one.
    fn claim(&mut self, length: u32, is_free: impl Fn(u32) -> bool) -> u32 {
        loop {
            let entry = self.next;
            self.next = (self.next + self.step) % length;
            if is_free(entry) {
                return entry;
            }
        }
    }
}

/// A table's length for so many members.
fn length(members: usize) -> u32 {
    let wanted = members.max(members.saturating_mul(ENTRIES).min(GROWS_TO));
    let fits = |&length: &u32| length as usize >= wanted;
    LENGTHS.into_iter().find(fits).unwrap_or(LENGTHS[LENGTHS.len() - 1])
}

fn hash(address: SocketAddr) -> u64 {
    pick::spread(pick::digest(&octets(address.ip())) ^ u64::from(address.port()))
}

/// As it stands in the kernel's maps.
const fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn address(number: u16) -> SocketAddr {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([10, 244, high, low], 8080))
    }

    fn members(numbers: impl IntoIterator<Item = u16>) -> Vec<(SocketAddr, u64)> {
        numbers.into_iter().map(|number| (address(number), 1)).collect()
    }

    fn counts(table: &Maglev) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        table.entries().iter().for_each(|member| *counts.entry(*member).or_default() += 1);
        counts
    }

    #[test]
    fn lengths_are_primes_and_large_enough() {
        for length in LENGTHS {
            assert!(
                (2..length).take_while(|d| d * d <= length).all(|divisor| length % divisor != 0),
                "{length}"
            );
        }
        for (members, wanted) in [
            (1, 2_039),
            (31, 2_039),
            (32, 16_381),
            (255, 16_381),
            (16_381, 16_381),
            (16_382, 131_071),
            (200_000, 131_071),
        ] {
            assert_eq!(length(members), wanted, "{members}");
        }
    }

    #[test]
    fn nobody_to_pick() {
        assert_eq!(Maglev::new(&[]).pick(1), None);
        assert_eq!(Maglev::new(&[(address(1), 0)]).pick(1), None);
    }

    /// What moves beside the clients of the endpoint that leaves, as a share of the others: measured over many tables.
    #[test]
    fn few_move_when_an_endpoint_leaves() {
        for count in [2_u16, 3, 4, 9, 16, 31, 50, 200] {
            let (mut moved, mut stayed) = (0, 0);
            for first in (0..20).map(|round| round * 1_000) {
                let all: Vec<u16> = (first..first + count).collect();
                let before = Maglev::new(&members(all.iter().copied()));
                let gone = usize::from(first % count);
                let rest: Vec<u16> = all.iter().copied().filter(|&number| number != all[gone]).collect();
                let after = Maglev::new(&members(rest.iter().copied()));
                for client in 0..2_000 {
                    let was = all[before.pick(client).unwrap()];
                    let is = rest[after.pick(client).unwrap()];
                    if was != all[gone] {
                        *(if was == is { &mut stayed } else { &mut moved }) += 1;
                    }
                }
            }
            let share = f64::from(moved) / f64::from(moved + stayed);
            eprintln!("{count} endpoints, one leaves: {:.2} % of the others' clients move", share * 100.0);
            assert!(share < 0.05, "{count} endpoints: {share}");
        }
        // Where the tables' length is another, nobody is promised anything but an even share.
        assert_ne!(length(31), length(32));
    }

    proptest! {
        #[test]
        fn entries_are_shared_by_weight(weights in prop::collection::vec(1_u64..20, 1..40), first: u8) {
            let first = u16::from(first) << 6;
            let members: Vec<_> = (first..).map(address).zip(weights.iter().copied()).collect();
            let table = Maglev::new(&members);
            let (counts, length) = (counts(&table), table.entries().len() as f64);
            let total: u64 = weights.iter().sum();
            for (member, weight) in (0..).zip(weights) {
                let wanted = length * weight as f64 / total as f64;
                let has = counts.get(&member).copied().unwrap_or(0) as f64;
                // A turn more at the beginning, and the last round is cut off.
                prop_assert!((has - wanted).abs() <= 2.0 + wanted * 0.25, "{member}: {has} of {wanted}");
            }
        }

        #[test]
        fn equal_weights_are_equal_to_one_entry(count in 1_u16..100) {
            let table = Maglev::new(&members(0..count));
            let counts = counts(&table);
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            prop_assert!(counts.len() == usize::from(count) && most - least <= 1, "{least} to {most}");
        }

        #[test]
        fn a_weight_is_a_share_whatever_its_unit(weights in prop::collection::vec(0_u64..50, 1..20), unit in 1_u64..1_000_000) {
            let table = |unit: u64| {
                let members: Vec<_> = (0..).map(address).zip(weights.iter().map(|weight| weight * unit)).collect();
                Maglev::new(&members)
            };
            prop_assert_eq!(table(1), table(unit));
        }
    }
}
