//! A destination as a route's target has it: endpoints and settings of one snapshot, with the live state of each endpoint.
//! What is picked from.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::algorithm::{self, Candidate};
use super::live::Live;
use super::priority::{Health, draw as draw_priority, loads};
use super::warmup::{self, WHOLE};
use crate::model::{AliasTable, Balancer, Endpoint, Route, RouteTarget, Spread, TrafficSettings};

/// Tries to draw a second endpoint that is not the first, before all of the others are looked at.
const REDRAWS: u32 = 4;

/// The target that a random number picks: exactly by weight, whether it has endpoints or not.
pub(crate) fn target(route: &Route, random: u64) -> Option<&RouteTarget> {
    let weights: Vec<Candidate> =
        route.targets.iter().enumerate().map(|(index, target)| (index, u64::from(target.weight))).collect();
    algorithm::draw(&weights, random).map(|index| &route.targets[index])
}

/// See the module.
#[derive(Debug)]
pub(crate) struct View {
    /// What is asked of connections.
    pub(crate) settings: Arc<TrafficSettings>,
    endpoints: Arc<[Endpoint]>,
    spread: Option<Arc<Spread>>,
    listed: Vec<Listed>,
    v4: Family,
    v6: Family,
    /// Until when some endpoint gets less than its share.
    warm_at: Option<Instant>,
}

/// An endpoint in a view.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) live: Arc<Live>,
    /// Since when it has been there, where it came after its destination was first seen; what was there then is not new.
    pub(super) since: Option<Instant>,
}

/// Endpoints of one address family that may be picked.
#[derive(Debug, Default)]
struct Family {
    members: Vec<Member>,
    /// Members by priority, the first first.
    priorities: Vec<Vec<usize>>,
    /// Of the first priority by weight, where its groups have none of their own.
    table: Option<AliasTable>,
    /// Of each member, for turns.
    credits: Mutex<Vec<i64>>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    /// Index among the endpoints.
    endpoint: usize,
    weight: u32,
    group: usize,
}

/// What decides beside the state of the endpoints.
pub(crate) struct Asking<'a> {
    /// Whether the client asked for an IPv4 address.
    pub(crate) v4: bool,
    /// The client's address.
    pub(crate) client: IpAddr,
    /// Endpoints that have just failed.
    pub(crate) avoid: &'a [SocketAddr],
    /// The time.
    pub(crate) now: Instant,
}

impl View {
    pub(super) fn new(target: &RouteTarget, listed: Vec<Listed>, now: Instant) -> Self {
        let plain = Spread::default();
        let spread = target.spread.as_deref().unwrap_or(&plain);
        let warmup = target.settings.warmup.as_ref();
        let warm = warmup
            .and_then(|warmup| listed.iter().filter_map(|one| Some(one.since? + warmup.duration)).max());
        Self {
            settings: Arc::clone(&target.settings),
            endpoints: Arc::clone(&target.endpoints),
            spread: target.spread.clone(),
            v4: Family::new(&target.endpoints, spread, |endpoint| endpoint.address.is_ipv4()),
            v6: Family::new(&target.endpoints, spread, |endpoint| endpoint.address.is_ipv6()),
            listed,
            warm_at: warm.filter(|&warm| warm > now),
        }
    }

    /// Whether it is the target's, as it is in the snapshot that the target is of.
    pub(super) fn is_of(&self, target: &RouteTarget) -> bool {
        let spreads = (self.spread.as_ref(), target.spread.as_ref());
        Arc::ptr_eq(&self.endpoints, &target.endpoints)
            && Arc::ptr_eq(&self.settings, &target.settings)
            && match spreads {
                (Some(own), Some(other)) => Arc::ptr_eq(own, other),
                (None, None) => true,
                _ => false,
            }
    }

    /// Whether a snapshot has it.
    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.endpoints) > 1 && Arc::strong_count(&self.settings) > 1
    }

    /// Whether an endpoint is listed: this one, and not another at its address.
    pub(super) fn has(&self, live: &Arc<Live>) -> bool {
        self.listed.iter().any(|listed| Arc::ptr_eq(&listed.live, live))
    }

    /// All that are listed.
    pub(super) fn listed(&self) -> &[Listed] {
        &self.listed
    }

    /// How many endpoints of a family are left out, of how many. A client has those of one family alone.
    pub(super) fn ejected(&self, v4: bool) -> (usize, usize) {
        let of_family =
            || self.listed.iter().map(|one| &one.live).filter(|live| live.address.is_ipv4() == v4);
        (of_family().filter(|live| live.is_ejected()).count(), of_family().count())
    }

    /// The endpoint with an index that was picked, and its live state.
    pub(crate) fn at(&self, index: usize) -> (&Endpoint, &Arc<Live>) {
        (&self.endpoints[index], &self.listed[index].live)
    }

    /// The endpoint with this address, unless it is left out.
    pub(crate) fn member(&self, address: SocketAddr) -> Option<usize> {
        let index = self.listed.iter().position(|one| one.live.address == address)?;
        (!self.listed[index].live.is_ejected()).then_some(index)
    }

    /// Whether an endpoint could be picked.
    pub(crate) fn has_other(&self, asking: &Asking<'_>) -> bool {
        !self.candidates(asking, 0).is_empty()
    }

    /// Picks an endpoint for a new connection; `is_calm` says that nobody is left out anywhere.
    pub(crate) fn pick(
        &self,
        asking: &Asking<'_>,
        is_calm: bool,
        mut random: impl FnMut() -> u64,
    ) -> Option<usize> {
        let family = self.family(asking.v4);
        let is_warm = self.warm_at.is_none_or(|warm| asking.now >= warm);
        let algorithm = self.settings.balancer;
        // All of the first priority, as always: nothing has to be looked at.
        if is_calm
            && is_warm
            && asking.avoid.is_empty()
            && let Some(table) = &family.table
        {
            let one = match algorithm {
                Balancer::Unspecified | Balancer::Random | Balancer::Passthrough => table.pick(random()),
                Balancer::LeastRequest => self.two_by_table(family, table, &mut random),
                Balancer::RoundRobin | Balancer::SourceIp => None,
            };
            if let Some(one) = one {
                return Some(family.members[family.priorities[0][one]].endpoint);
            }
        }
        let candidates = self.candidates(asking, random());
        let member = match algorithm {
            Balancer::Unspecified | Balancer::Random | Balancer::Passthrough => {
                algorithm::draw(&candidates, random())
            }
            Balancer::LeastRequest => self.two(family, candidates, &mut random),
            Balancer::RoundRobin => family.turn(&candidates),
            Balancer::SourceIp => {
                let address = |member: usize| self.endpoints[family.members[member].endpoint].address;
                algorithm::of_client(&candidates, asking.client, address)
            }
        };
        member.map(|member| family.members[member].endpoint)
    }

    const fn family(&self, v4: bool) -> &Family {
        if v4 { &self.v4 } else { &self.v6 }
    }

    /// Who may be picked, with what weight: members of one priority and one group, those that are well and not to be avoided.
    fn candidates(&self, asking: &Asking<'_>, random: u64) -> Vec<Candidate> {
        let family = self.family(asking.v4);
        let threshold = self.settings.outliers.map_or(0, |rule| rule.min_health_percent);
        let health: Vec<Health> = family
            .priorities
            .iter()
            .map(|members| Health {
                well: members.iter().filter(|&&member| !self.is_out(family, member)).count(),
                total: members.len(),
            })
            .collect();
        let loads = loads(&health, threshold);
        // Where all that the priority has is to be avoided, another one has to do.
        let drawn = draw_priority(&loads, random);
        let order = drawn.into_iter().chain((0..loads.len()).filter(|&other| Some(other) != drawn));
        let usable = |priority: usize| -> Vec<usize> {
            let members = family.priorities[priority].iter().copied();
            let usable = members.filter(|&member| {
                let address = self.endpoints[family.members[member].endpoint].address;
                (loads[priority].panic || !self.is_out(family, member)) && !asking.avoid.contains(&address)
            });
            usable.collect()
        };
        let found = order.map(|priority| (priority, usable(priority))).find(|(_, usable)| !usable.is_empty());
        let Some((priority, usable)) = found else { return Vec::new() };
        let group = self.group(family, &family.priorities[priority], &usable, loads[priority].panic, random);
        let weight = |member: usize| {
            u64::from(family.members[member].weight) * self.warmth(family, member, asking.now)
        };
        let is_in = |member: &usize| group.is_none_or(|group| family.members[*member].group == group);
        usable.into_iter().filter(is_in).map(|member| (member, weight(member))).collect()
    }

    /// The group that is picked from, where groups have weights: a group of which less than 100 / 140 is well gets that much less
    /// (Envoy's locality weighted load balancing).
    fn group(
        &self,
        family: &Family,
        all: &[usize],
        usable: &[usize],
        panic: bool,
        random: u64,
    ) -> Option<usize> {
        let spread = self.spread.as_deref()?;
        let mut groups: Vec<usize> = usable.iter().map(|&member| family.members[member].group).collect();
        groups.sort_unstable();
        groups.dedup();
        let weights = groups.into_iter().map(|group| {
            let of_group = all.iter().filter(|&&member| family.members[member].group == group);
            let (mut well, mut total) = (0, 0);
            for &member in of_group {
                total += 1;
                well += usize::from(panic || !self.is_out(family, member));
            }
            (group, u64::from(spread.weight(group)) * Health { well, total }.availability())
        });
        let weights: Vec<Candidate> = weights.filter(|&(_, weight)| weight > 0).collect();
        // Another part of the number than the priority was drawn by.
        algorithm::draw(&weights, mesh_common::pick::spread(random))
    }

    fn is_out(&self, family: &Family, member: usize) -> bool {
        self.listed[family.members[member].endpoint].live.is_ejected()
    }

    fn warmth(&self, family: &Family, member: usize, now: Instant) -> u64 {
        let since = self.listed[family.members[member].endpoint].since;
        match (&self.settings.warmup, since) {
            (Some(warmup), Some(since)) => warmup::part(warmup, now.saturating_duration_since(since)),
            _ => WHOLE,
        }
    }

    /// Of two that are drawn by weight the one with fewer connections for its weight.
    fn two(
        &self,
        family: &Family,
        mut candidates: Vec<Candidate>,
        random: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        let first = algorithm::draw(&candidates, random())?;
        let at = candidates.iter().position(|&(member, _)| member == first)?;
        let (_, first_weight) = candidates.swap_remove(at);
        let Some(second) = algorithm::draw(&candidates, random()) else { return Some(first) };
        let second_weight = candidates.iter().find(|&&(member, _)| member == second)?.1;
        let open = |member: usize| self.listed[family.members[member].endpoint].live.open();
        let first_is_taken = algorithm::first_of_two(
            (open(first), first_weight),
            (open(second), second_weight),
            random() & 1 == 0,
        );
        Some(if first_is_taken { first } else { second })
    }

    /// The same where all of the first priority are candidates: mostly two draws, whatever their number.
    fn two_by_table(
        &self,
        family: &Family,
        table: &AliasTable,
        random: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        let first = table.pick(random())?;
        if family.priorities[0].len() == 1 {
            return Some(first);
        }
        let redrawn = (0..REDRAWS).find_map(|_| table.pick(random()).filter(|&second| second != first));
        let second = redrawn.or_else(|| {
            let places = family.priorities[0].iter().enumerate().filter(|&(place, _)| place != first);
            let rest: Vec<Candidate> =
                places.map(|(place, &member)| (place, u64::from(family.members[member].weight))).collect();
            algorithm::draw(&rest, random())
        })?;
        let of = |place: usize| {
            let member = family.members[family.priorities[0][place]];
            (self.listed[member.endpoint].live.open(), u64::from(member.weight))
        };
        Some(if algorithm::first_of_two(of(first), of(second), random() & 1 == 0) { first } else { second })
    }
}

impl Family {
    fn new(endpoints: &[Endpoint], spread: &Spread, is_of: impl Fn(&Endpoint) -> bool) -> Self {
        let members: Vec<Member> = endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| is_of(endpoint) && endpoint.weight > 0)
            .map(|(index, endpoint)| Member {
                endpoint: index,
                weight: endpoint.weight,
                group: spread.group(index),
            })
            .collect();
        let mut numbers: Vec<u8> = members.iter().map(|member| spread.priority(member.group)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let of_priority = |&number: &u8| -> Vec<usize> {
            let is_of = |member: &Member| spread.priority(member.group) == number;
            members.iter().enumerate().filter(|(_, member)| is_of(member)).map(|(index, _)| index).collect()
        };
        let priorities: Vec<Vec<usize>> = numbers.iter().map(of_priority).collect();
        let table = priorities
            .first()
            .filter(|first| first.iter().all(|&member| spread.weight(members[member].group) == 0));
        let table = table.map(|first| {
            let weights: Vec<u64> = first.iter().map(|&member| u64::from(members[member].weight)).collect();
            AliasTable::new(&weights)
        });
        // Wherever the turns begin: agents that learn of the same change do not all begin with the same endpoint.
        let all: i64 = members.iter().map(|member| i64::from(member.weight)).sum();
        let credits = members.iter().map(|_| fastrand::i64(0..=all)).collect();
        Self { members, priorities, table, credits: Mutex::new(credits) }
    }

    fn turn(&self, candidates: &[Candidate]) -> Option<usize> {
        let mut credits = self.credits.lock().unwrap_or_else(PoisonError::into_inner);
        algorithm::turn(&mut credits, candidates)
    }
}
