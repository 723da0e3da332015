//! Alias tables: a weighted pick in constant time (M. D. Vose, 1991), built with integers so that the shares are those
//! of the weights to within 2⁻³² of a slot.

use mesh_common::pick;

/// One slot of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The draw stays here while its fraction is below this.
    pub threshold: u32,
    /// Where it goes otherwise.
    pub alias: u32,
}

/// A weighted choice among `len` items. Empty where no weight is above zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AliasTable(Vec<Draw>);

impl AliasTable {
    /// A table for these weights; an item of weight zero is never picked.
    pub fn new(weights: &[u64]) -> Self {
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        if total == 0 {
            return Self::default();
        }
        // Scaled so that the mean slot holds exactly `total`.
        let count = weights.len() as u128;
        let mut left: Vec<u128> = weights.iter().map(|&weight| u128::from(weight) * count).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|&slot| left[slot] < total);
        let mut table: Vec<Draw> =
            (0..weights.len()).map(|slot| Draw { threshold: u32::MAX, alias: index(slot) }).collect();
        while let (Some(poor), Some(rich)) = (small.pop(), large.pop()) {
            table[poor] = Draw { threshold: fraction(left[poor], total), alias: index(rich) };
            left[rich] -= total - left[poor];
            if left[rich] < total { small.push(rich) } else { large.push(rich) }
        }
        Self(table)
    }

    /// The slots.
    pub fn slots(&self) -> &[Draw] {
        &self.0
    }

    /// The index of the item that a random number picks, as the kernel picks it.
    pub fn pick(&self, random: u64) -> Option<usize> {
        let slots = u32::try_from(self.0.len()).ok().filter(|&slots| slots > 0)?;
        let slot = pick::slot(random, slots);
        let draw = self.0[slot as usize];
        Some(if pick::stays(random, draw.threshold) { slot } else { draw.alias } as usize)
    }
}

fn index(slot: usize) -> u32 {
    u32::try_from(slot).expect("a service has fewer than 2^32 backends")
}

/// `part / whole` as a share of 2³², rounded to the nearest; below 1 by construction.
fn fraction(part: u128, whole: u128) -> u32 {
    u32::try_from(((part << 32) + whole / 2) / whole).unwrap_or(u32::MAX - 1).min(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The share of each item that the table gives, computed from the table itself.
    fn shares(table: &AliasTable, items: usize) -> Vec<f64> {
        let mut shares = vec![0.0; items];
        let slots = table.slots();
        for (slot, draw) in slots.iter().enumerate() {
            let stay =
                if draw.threshold == u32::MAX { 1.0 } else { f64::from(draw.threshold) / 4_294_967_296.0 };
            shares[slot] += stay / slots.len() as f64;
            shares[draw.alias as usize] += (1.0 - stay) / slots.len() as f64;
        }
        shares
    }

    proptest! {
        #[test]
        fn shares_are_those_of_the_weights(weights in prop::collection::vec(0_u64..1_000_000, 1..60)) {
            let total: u64 = weights.iter().sum();
            let table = AliasTable::new(&weights);
            if total == 0 {
                prop_assert_eq!(table.pick(7), None);
                return Ok(());
            }
            for (item, share) in shares(&table, weights.len()).into_iter().enumerate() {
                let wanted = weights[item] as f64 / total as f64;
                prop_assert!((share - wanted).abs() < 1e-7, "item {}: {} instead of {}", item, share, wanted);
                prop_assert!(weights[item] > 0 || share == 0.0, "item {} of weight 0 has share {}", item, share);
            }
        }

        #[test]
        fn picks_are_in_range(weights in prop::collection::vec(0_u64..100, 1..20), random: u64) {
            if let Some(item) = AliasTable::new(&weights).pick(random) {
                prop_assert!(weights[item] > 0);
            }
        }
    }

    #[test]
    fn nothing_to_pick_from() {
        assert_eq!(AliasTable::new(&[]).pick(1), None);
        assert_eq!(AliasTable::new(&[0, 0]).pick(1), None);
    }
}
