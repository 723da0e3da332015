//! Fields of `ServiceEntry`s (istio/api, `networking/v1alpha3/service_entry.proto`).

use super::{Field, State};

pub(super) const FIELDS: &[Field] = &[
    Field {
        path: "spec.hosts",
        state: State::Honoured,
        note: "each with a dot is a service `NAMESPACE/HOST`. One that a Kubernetes Service has is that Service's; of two entries of one namespace the \
               older one's",
    },
    Field {
        path: "spec.addresses",
        state: State::Partly,
        note: "clients of every node reach the first host there, at its ports alone; a network (`ADDRESS/BITS`) is not served, nor is the address of a pod, a node or the API server. With none, the \
               hosts are destinations of routes alone",
    },
    Field { path: "spec.ports[].number", state: State::Honoured, note: "" },
    Field {
        path: "spec.ports[].protocol",
        state: State::Honoured,
        note: "`UDP`, or TCP; it tells `http` from `tcp` routes",
    },
    Field {
        path: "spec.ports[].name",
        state: State::Honoured,
        note: "finds the port in `endpoints[].ports`",
    },
    Field { path: "spec.ports[].targetPort", state: State::Honoured, note: "" },
    Field {
        path: "spec.location",
        state: State::Honoured,
        note: "endpoints of `MESH_INTERNAL` that take HBONE are reached with mutual TLS; those of `MESH_EXTERNAL` that are written here, in \
               plaintext",
    },
    Field {
        path: "spec.resolution",
        state: State::Partly,
        note: "`STATIC`. An entry with `NONE`, `DNS`, `DNS_ROUND_ROBIN` or `DYNAMIC_DNS` is no service here: connections to its hosts leave as \
               they are",
    },
    Field {
        path: "spec.endpoints[].address",
        state: State::Partly,
        note: "an IP address; an endpoint with a name or `unix://` is left out",
    },
    Field {
        path: "spec.endpoints[].ports",
        state: State::Honoured,
        note: "goes before `ports[].targetPort`",
    },
    Field {
        path: "spec.endpoints[].labels",
        state: State::Honoured,
        note: "subsets ask for them, and selectors of policies; `networking.istio.io/tunnel: http` says that it takes HBONE",
    },
    Field {
        path: "spec.endpoints[].network",
        state: State::NotYet,
        note: "taken for the own network: the endpoint is connected to directly, and left out without an address",
    },
    Field {
        path: "spec.endpoints[].locality",
        state: State::Honoured,
        note: "`REGION/ZONE/SUBZONE`; what is behind it is passed over",
    },
    Field { path: "spec.endpoints[].weight", state: State::Honoured, note: "0 counts as 1" },
    Field {
        path: "spec.endpoints[].serviceAccount",
        state: State::Honoured,
        note: "with `MESH_INTERNAL`: the identity that an endpoint which takes HBONE must show",
    },
    Field {
        path: "spec.workloadSelector.labels",
        state: State::Honoured,
        note: "pods and WorkloadEntries of the entry's namespace; none without a label",
    },
    Field {
        path: "spec.exportTo",
        state: State::Partly,
        note: "namespaces whose rules may name its hosts. Unless it is empty or has `*`, its addresses are not served: its hosts are destinations of routes alone",
    },
    Field {
        path: "spec.subjectAltNames",
        state: State::NotYet,
        note: "an endpoint that takes HBONE must show the identity of its service account, and no other",
    },
];
