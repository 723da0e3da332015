//! The algorithms, pure: weighted draw, two choices, turns, hash.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use mesh_common::pick::spread;

/// Somebody who may be picked: an index, and a weight above zero.
pub(super) type Candidate = (usize, u64);

/// The candidate that a random number falls into.
pub(super) fn draw(candidates: &[Candidate], random: u64) -> Option<usize> {
    let all: u128 = candidates.iter().map(|&(_, weight)| u128::from(weight)).sum();
    let mut slot = (u128::from(random) * all) >> 64;
    let found = candidates.iter().find(|(_, weight)| match slot.checked_sub(u128::from(*weight)) {
        Some(rest) => {
            slot = rest;
            false
        }
        None => true,
    });
    found.map(|&(index, _)| index)
}

/// Of two with so many connections open each, and these weights, whether the first is to get the next one: it is the less busy
/// for its weight once it has it; of equals `coin` decides.
pub(super) fn first_of_two(one: (u32, u64), other: (u32, u64), coin: bool) -> bool {
    let busy = |(open, _): (u32, u64), (_, weight): (u32, u64)| (u128::from(open) + 1) * u128::from(weight);
    match busy(one, other).cmp(&busy(other, one)) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => coin,
        std::cmp::Ordering::Greater => false,
    }
}

/// Whose turn it is: each candidate's credit grows by its weight, who has most pays for all (smooth weighted round robin, as nginx has
/// it). `credits` has a place for each index.
pub(super) fn turn(credits: &mut [i64], candidates: &[Candidate]) -> Option<usize> {
    let mut all = 0_i64;
    for &(index, weight) in candidates {
        let weight = i64::try_from(weight).unwrap_or(i64::MAX);
        all = all.saturating_add(weight);
        credits[index] = credits[index].saturating_add(weight);
    }
    let &(first, _) = candidates.iter().max_by_key(|&&(index, _)| credits[index])?;
    credits[first] = credits[first].saturating_sub(all);
    Some(first)
}

/// The candidate of a client's address: the same for as long as it is one, whoever else comes or goes (weighted rendezvous hash:
/// D. G. Thaler and C. V. Ravishankar, 1998). For where the table of the whole destination says somebody who is left out.
pub(super) fn of_client(
    candidates: &[Candidate],
    client: IpAddr,
    address: impl Fn(usize) -> SocketAddr,
) -> Option<usize> {
    let score = |&(index, weight): &Candidate| {
        let mut hasher = DefaultHasher::new();
        (client, address(index)).hash(&mut hasher);
        #[expect(clippy::cast_precision_loss, reason = "52 bits of a hash; of a weight more than enough")]
        let (hash, weight) = ((spread(hasher.finish()) >> 12) as f64, weight as f64);
        // In (0, 1): its logarithm is below 0.
        let part = (hash + 0.5) / 2_f64.powi(52);
        -weight / part.ln()
    };
    let best = candidates.iter().max_by(|one, other| score(one).total_cmp(&score(other)));
    best.map(|&(index, _)| index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn draws_follow_the_weights_exactly(weights in prop::collection::vec(1_u64..40, 1..8)) {
            let candidates: Vec<Candidate> = weights.iter().copied().enumerate().collect();
            let all: u64 = weights.iter().sum();
            let mut counts = vec![0_u64; weights.len()];
            // One number in the middle of each slot.
            for slot in 0..all {
                let random = u64::MAX / all * slot + u64::MAX / all / 2;
                counts[draw(&candidates, random).unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn the_busier_of_two_is_never_taken(
            one in (0_u32..1000, 1_u64..100), other in (0_u32..1000, 1_u64..100), coin: bool
        ) {
            let busy = |(open, weight): (u32, u64)| f64::from(open + 1) / weight as f64;
            let (taken, left) = if first_of_two(one, other, coin) { (one, other) } else { (other, one) };
            prop_assert!(busy(taken) <= busy(left) + 1e-9);
        }

        #[test]
        fn turns_are_shared_exactly_by_weight(weights in prop::collection::vec(1_u64..20, 1..8)) {
            let candidates: Vec<Candidate> = weights.iter().copied().enumerate().collect();
            let all: u64 = weights.iter().sum();
            let (mut credits, mut counts) = (vec![0; weights.len()], vec![0_u64; weights.len()]);
            for _ in 0..all * 3 {
                counts[turn(&mut credits, &candidates).unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights.iter().map(|weight| weight * 3).collect::<Vec<_>>());
            prop_assert!(credits.iter().all(|&credit| credit == 0));
        }

        #[test]
        fn clients_of_who_goes_move_and_no_others(clients in prop::collection::vec(any::<u32>(), 1..40)) {
            let address = |index: usize| SocketAddr::from(([10, 0, 0, index as u8], 80));
            let all: Vec<Candidate> = (0..7).map(|index| (index, 1 + index as u64 % 3)).collect();
            let left: Vec<Candidate> = all.iter().copied().filter(|&(index, _)| index != 3).collect();
            for client in clients {
                let client = IpAddr::from(client.to_be_bytes());
                let before = of_client(&all, client, address).unwrap();
                if before != 3 {
                    prop_assert_eq!(of_client(&left, client, address), Some(before));
                }
            }
        }
    }

    #[test]
    fn turns_alternate_rather_than_come_in_rows() {
        let mut credits = [0; 3];
        let order: Vec<usize> =
            (0..7).map(|_| turn(&mut credits, &[(0, 5), (1, 1), (2, 1)]).unwrap()).collect();
        assert_eq!(order.iter().filter(|&&index| index == 0).count(), 5);
        let longest = order.chunk_by(|one, other| one == other).map(<[usize]>::len).max();
        assert!(longest <= Some(3), "{order:?}");
    }

    #[test]
    fn clients_are_spread_by_weight() {
        let address = |index: usize| SocketAddr::from(([10, 0, 0, index as u8], 80));
        let mut counts = [0_u32; 2];
        for client in 0..8000_u32 {
            counts[of_client(&[(0, 3), (1, 1)], IpAddr::from(client.to_be_bytes()), address).unwrap()] += 1;
        }
        // 6,000 expected, σ ≈ 39.
        assert!((5800..6200).contains(&counts[0]), "{counts:?}");
        assert_eq!(of_client(&[], IpAddr::from([1, 2, 3, 4]), address), None);
    }

    #[test]
    fn of_equals_the_coin_decides() {
        assert!(first_of_two((3, 1), (3, 1), true) && !first_of_two((3, 1), (3, 1), false));
        assert!(first_of_two((0, 3), (0, 1), false), "the heavier takes the first");
        assert!(!first_of_two((4, 1), (3, 1), true));
    }
}
