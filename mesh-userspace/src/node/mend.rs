//! What should be in place of an enrolment, compared with what is, and put right. Nothing that works is touched on the way:
//! what is missing is laid beside what is there, so that mending never opens what was shut.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use mesh_common::abi::PodKey;

use super::enrol::{EnrolError, Enroller, Enrolment, present, set_listeners};
use super::listeners::{self, Listener};
use super::plumbing::{self, Lack};
use crate::datapath::{Datapath, address_of};
use crate::model::MtlsModes;

/// What was found and done.
#[derive(Debug, Default)]
pub struct Mended {
    /// What was put right: the kind of thing, as the metrics name it, and what was wrong.
    pub done: Vec<(&'static str, String)>,
    /// What is wrong and stays so.
    pub broken: Vec<EnrolError>,
    /// Listeners that were opened anew, to be accepted from.
    pub opened: Vec<Listener>,
}

impl Mended {
    fn settle<E: Into<EnrolError>>(&mut self, what: &'static str, why: String, result: Result<(), E>) {
        match result {
            Ok(()) => self.done.push((what, why)),
            Err(error) => self.broken.push(error.into()),
        }
    }
}

impl Enroller {
    /// Compares an enrolment with what should be and puts it right. `listening` is what the map of listeners holds. Rules, routes
    /// and addresses are looked at where the namespace said that something changed, or where `all` is to be.
    pub fn mend(
        &mut self,
        datapath: &mut Datapath,
        enrolment: &mut Enrolment,
        modes: &MtlsModes,
        listening: &HashSet<PodKey>,
        all: bool,
    ) -> Mended {
        let mut mended = Mended::default();
        // First what refuses: the modes, then the program that reads them.
        if !datapath.has_inbound_modes(&enrolment.steered, modes) {
            let result = datapath.set_inbound_modes(&enrolment.steered, modes);
            mended.settle("modes", "its modes were not in the map".to_owned(), result);
        }
        if let Some(why) = link_problem(datapath, enrolment) {
            let result = datapath.attach_pod(enrolment.cookie, enrolment.held.netns.file().as_fd());
            mended.settle("link", why, result);
        }
        Self::mend_listeners(datapath, enrolment, listening, &mut mended);
        if enrolment.held.monitor.has_changed() || all {
            self.mend_namespace(datapath, enrolment, modes, &mut mended);
        }
        match datapath.mend_destinations(&enrolment.addresses) {
            Ok(false) => {}
            Ok(true) => mended.done.push(("destinations", "its addresses were not in the map".to_owned())),
            Err(error) => mended.broken.push(error.into()),
        }
        // Last what captures: all that it needs is there.
        if !datapath.has_pod(enrolment.cookie) {
            let result = self.begin_capture(datapath, enrolment);
            mended.settle("pods", "the pod was not in PODS".to_owned(), result);
        }
        mended
    }

    fn mend_listeners(
        datapath: &mut Datapath,
        enrolment: &mut Enrolment,
        listening: &HashSet<PodKey>,
        mended: &mut Mended,
    ) {
        let families = |v4: bool| enrolment.steered.iter().any(|address| address.is_ipv4() == v4);
        let has = |v4: bool| enrolment.held.listeners.iter().any(|listener| listener.v4 == v4);
        let closed = enrolment.held.listeners.iter().any(|listener| !listener.listens());
        if closed || [true, false].iter().any(|v4| families(*v4) && !has(*v4)) {
            let why = if closed { "a listener was shut down" } else { "a family had no listener" };
            let steered = enrolment.steered.clone();
            let opened = enrolment.held.netns.run(move || listeners::open(&steered)).and_then(|opened| {
                let held = opened.iter().map(Listener::try_clone).collect::<io::Result<Vec<_>>>()?;
                Ok((opened, held))
            });
            let set = match opened {
                Ok((opened, held)) => {
                    mended.opened = opened;
                    enrolment.held.listeners = held;
                    set_listeners(datapath, &enrolment.steered, &enrolment.held.listeners)
                        .map_err(EnrolError::from)
                }
                Err(source) => Err(at("listen", enrolment, source)),
            };
            return mended.settle("listeners", why.to_owned(), set);
        }
        let gone: Vec<IpAddr> = enrolment
            .steered
            .iter()
            .copied()
            .filter(|address| {
                let key = |listener: &Listener| PodKey {
                    address: address_of(*address),
                    selector: listener.role as u32,
                };
                let own = enrolment.held.listeners.iter().filter(|held| held.v4 == address.is_ipv4());
                own.map(key).any(|key| !listening.contains(&key))
            })
            .collect();
        if !gone.is_empty() {
            let result = set_listeners(datapath, &gone, &enrolment.held.listeners);
            mended.settle("listeners", format!("{} had no listener", list(&gone)), result);
        }
    }

    /// Rules, routes, sysctls and addresses.
    fn mend_namespace(
        &mut self,
        datapath: &mut Datapath,
        enrolment: &mut Enrolment,
        modes: &MtlsModes,
        mended: &mut Mended,
    ) {
        let now = match enrolment.held.netns.run(present) {
            Ok(now) => now,
            Err(source) => return mended.broken.push(at("look at the addresses", enrolment, source)),
        };
        if let Err(error) = self.follow_addresses(datapath, enrolment, modes, &now, mended) {
            mended.broken.push(error);
        }
        let gone: Vec<IpAddr> =
            enrolment.addresses.iter().copied().filter(|address| !now.contains(address)).collect();
        if !gone.is_empty() {
            let path = enrolment.netns.clone();
            mended
                .broken
                .extend(gone.iter().map(|&address| EnrolError::Address { path: path.clone(), address }));
        }
        // A route's source must be an address of the namespace.
        let own: Vec<IpAddr> = enrolment.addresses.iter().copied().filter(|own| now.contains(own)).collect();
        let steered = enrolment.steered.clone();
        let laid: io::Result<Vec<Lack>> = enrolment.held.netns.run(move || {
            let missing = plumbing::missing(&steered, &own)?;
            if !missing.is_empty() {
                plumbing::lay(&steered, &own)?;
            }
            Ok(missing)
        });
        match laid {
            Ok(missing) => mended.done.extend(missing),
            Err(source) => mended.broken.push(at("mend rules and routes", enrolment, source)),
        }
    }

    /// Steers what the namespace has got since, and lets go of what it has lost.
    fn follow_addresses(
        &mut self,
        datapath: &mut Datapath,
        enrolment: &mut Enrolment,
        modes: &MtlsModes,
        now: &[IpAddr],
        mended: &mut Mended,
    ) -> Result<(), EnrolError> {
        let is_free =
            |address: &IpAddr| self.owners.get(address).is_none_or(|owner| *owner == enrolment.cookie);
        let steered: Vec<IpAddr> = now.iter().copied().filter(is_free).collect();
        if steered == enrolment.steered {
            return Ok(());
        }
        let lost: Vec<IpAddr> =
            enrolment.steered.iter().copied().filter(|address| !steered.contains(address)).collect();
        let new: Vec<IpAddr> =
            steered.iter().copied().filter(|address| !enrolment.steered.contains(address)).collect();
        enrolment.steered = steered;
        // Before they are served: whoever takes the pod back later takes those as well.
        self.remember(&enrolment.remembered())?;
        self.owners.extend(new.iter().map(|address| (*address, enrolment.cookie)));
        for address in &lost {
            datapath.clear_address(*address)?;
        }
        self.disown(enrolment.cookie, &lost);
        datapath.set_inbound_modes(&new, modes)?;
        set_listeners(datapath, &new, &enrolment.held.listeners)?;
        if !new.is_empty() {
            mended.done.push(("addresses", format!("{} came to the namespace", list(&new))));
        }
        if !lost.is_empty() {
            mended.done.push(("addresses", format!("{} left the namespace", list(&lost))));
        }
        Ok(())
    }
}

/// What is wrong with the link of a namespace's `sk_lookup` program.
fn link_problem(datapath: &Datapath, enrolment: &Enrolment) -> Option<String> {
    match (datapath.pod_link(enrolment.cookie), datapath.pod_program_id()) {
        (Err(error), _) => Some(format!("the sk_lookup link could not be read: {error}")),
        (Ok(link), _) if u64::from(link.netns_inode()) != enrolment.inode => {
            Some("the sk_lookup link was not on the pod's namespace".to_owned())
        }
        (Ok(link), Ok(own)) if link.program_id != own => {
            Some(format!("the sk_lookup link ran program {} instead of {own}", link.program_id))
        }
        _ => None,
    }
}

fn at(operation: &'static str, enrolment: &Enrolment, source: io::Error) -> EnrolError {
    EnrolError::Plumbing { operation, path: enrolment.netns.clone(), source }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
