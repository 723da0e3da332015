//! The codes of everything that is told about objects. A code is stable: it never changes its meaning, and that of one that
//! is gone is never given to another. docs/analysis.md lists them, and a test holds the two together.
//!
//! The first two digits are the subject, as with Istio's `IST0101`: 00 reading, 01 routes, 02 destinations, 03 services,
//! 04 mutual TLS, 05 authorization, 06 enrolment, 07 service entries.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Severity;

macro_rules! codes {
    ($($name:ident $code:literal $severity:ident $title:literal $remedy:literal;)*) => {
        /// What kind of thing is told.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[allow(clippy::doc_markdown, reason = "titles are for terminals as well")]
        pub enum Code {
            $(#[doc = $title] #[serde(rename = $code)] $name,)*
        }

        impl Code {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it is written, such as `MESH0101`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// How much it matters.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity),* }
            }

            /// What it is about, in a line.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }

            /// What to do about it.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy),* }
            }
        }
    };
}

codes! {
    Unreadable "MESH0001" Error "A file cannot be read"
        "make it a regular file, in UTF-8 and below 64 MiB, that the reader may read";
    NotYaml "MESH0002" Error "A document is no Kubernetes object"
        "write it as YAML or JSON with apiVersion, kind and metadata.name";
    Invalid "MESH0003" Error "A field cannot be what it is: the object is rejected"
        "write the field as the reason says; until then the object's last good state stays in force, where there is one";
    DefinedTwice "MESH0004" Error "An object is written twice"
        "keep one of the two";
    UnknownField "MESH0005" Warning "A field that the kind does not have"
        "look for a typing mistake, or take the field out";
    KindNotHonoured "MESH0006" Warning "A kind that is not carried out yet"
        "do not rely on it; take it out where something else does its work";
    Unlisted "MESH0007" Warning "Objects of the cluster that could not be looked at"
        "give the user of the kubeconfig the verbs get and list on that kind, and analyze again";

    RouteHostUnknown "MESH0101" Warning "Routes for a host that is no service"
        "name an existing service (NAME, NAME.NAMESPACE or its full host), or take the routes out";
    DestinationUnknown "MESH0102" Error "A route leads to a host that is no service"
        "create the service or name another destination; a short name is looked up in the VirtualService's own namespace";
    DestinationPortUnknown "MESH0103" Error "A route leads to a port that the service does not have"
        "name a port of the destination's service in destination.port.number";
    SubsetUnknown "MESH0104" Error "A route leads to a subset that no DestinationRule names"
        "add the subset to a DestinationRule for that host, or correct its name";
    SubsetWithoutEndpoints "MESH0105" Error "A route leads to a subset without endpoints"
        "start pods with the subset's labels, correct the labels, or give the destination weight 0";
    WeightsZero "MESH0106" Error "The weights of a route are all zero"
        "give at least one destination a weight above 0; of several destinations those without a weight count as 0";
    HostClash "MESH0107" Warning "Two VirtualServices for one host"
        "merge them into one: only the oldest is in force in the mesh";
    ShadowedRoute "MESH0108" Warning "A route that is never reached"
        "put it before the route that takes everything, or take it out";
    Layer7 "MESH0109" Warning "A layer-7 field, which layer 4 does not carry out"
        "do it in the application or in a layer-7 proxy, and take the field out where its absence would be misleading";
    NoRouteForAll "MESH0110" Warning "No route holds for every connection to a port"
        "add a last route without a layer-7 match, which says where connections go";
    RouteWithoutDestination "MESH0111" Warning "A route without destinations"
        "give it destinations: layer 4 makes no answers of its own";
    GatewayNotHonoured "MESH0113" Warning "A VirtualService for a gateway"
        "leave spec.gateways out, or name mesh, for clients in the mesh";
    ForeignHost "MESH0115" Warning "A host that is nobody's"
        "name a service of the cluster, or give the host a ServiceEntry with resolution STATIC that is exported to the rule's namespace";
    RouteForOtherProtocol "MESH0116" Warning "Routes of another protocol than the port's"
        "write the routes under the port's protocol (spec.tcp or spec.http), or correct the port's name or appProtocol";
    TcpRouteForHttpPort "MESH0117" Info "A TCP route for a port of HTTP or TLS"
        "nothing, for this mesh alone; write the route under spec.http or spec.tls where proxies of Istio's shall carry it out too";
    MatchPortUnknown "MESH0118" Warning "A match on a port that the service does not have"
        "name a port of the service, or leave the port out";
    NotHonouredYet "MESH0119" Warning "A field that is not carried out yet"
        "do not rely on it; take it out where its absence would be misleading";

    ParentNotHonoured "MESH0120" Warning "A Gateway API route for what is no service"
        "name a Service in spec.parentRefs, with group \"\" and kind Service";
    BackendUnresolved "MESH0121" Error "A Gateway API route leads where no connection can go"
        "name a Service and one of its TCP ports; one in another namespace needs a ReferenceGrant there";
    NeedsEnrolledClient "MESH0122" Info "A route that only enrolled clients take as it is written"
        "enrol the clients that it is for; the note says what the others do";
    ExportedToNobody "MESH0123" Warning "A VirtualService that is exported to nobody"
        "leave ~ out of spec.exportTo, or take the VirtualService out";

    RuleHostUnknown "MESH0201" Warning "A DestinationRule for a host that is no service"
        "name an existing service as NAME, NAME.NAMESPACE or with its full host, or take the DestinationRule out";
    RulesOverlap "MESH0202" Warning "Two DestinationRules for one host"
        "merge them into one: of a subset that both name, one is in force";
    SubsetWithoutPods "MESH0203" Warning "A subset that no pod of the service is in"
        "correct the subset's labels, or start pods that have them";
    SubsetUnused "MESH0204" Info "A subset that no route leads to"
        "route to it from a VirtualService, or take it out";
    // MESH0205 told of traffic policies while none was carried out.
    NeedsEnrolledClients "MESH0206" Info "A setting that holds for enrolled clients"
        "enrol the clients for which it is to hold: label their namespace istio.io/dataplane-mode=ambient";
    ApproximatedInKernel "MESH0207" Info "An algorithm that needs an enrolled client"
        "enrol the clients for which it is to hold; for others endpoints are picked at random, by weight";
    SettingWithoutEffect "MESH0208" Warning "A setting that changes nothing"
        "take it out, or set what it needs";
    PortSettingUnknown "MESH0209" Warning "Settings for a port that the service does not have"
        "name a port of the service in portLevelSettings[].port.number";
    NobodyEjected "MESH0210" Info "Outlier detection that can leave nobody out"
        "raise outlierDetection.maxEjectionPercent to at least 100 divided by the number of endpoints";

    PortProtocolUndeclared "MESH0301" Info "A routed port whose protocol nothing tells"
        "set appProtocol, or begin the port's name with its protocol (http-web, tcp-db)";
    Sctp "MESH0302" Warning "A port of a protocol that is not carried"
        "serve it over TCP or UDP, or reach its pods directly";
    WithoutClusterAddress "MESH0303" Warning "A field that needs a cluster address"
        "give the service a cluster address, or take the field out";
    OtherFamily "MESH0304" Warning "An address of a family that the service does not have"
        "make the service dual-stack (ipFamilyPolicy), or take the address out";
    NotARange "MESH0305" Error "A source range that is none"
        "write it as ADDRESS/BITS";
    LeftToOthers "MESH0306" Info "A service that is somebody else's to serve"
        "nothing, where that is meant";
    NoHealthCheckPort "MESH0307" Info "A load balancer cannot ask which nodes have endpoints"
        "set healthCheckNodePort; the API server does that by itself";
    AddressClash "MESH0308" Error "An address that two objects say they have"
        "give one of the two another address or port; until then a pod, a node or a Service keeps it, of entries the oldest has it, else the first by name";
    WithoutEffect "MESH0309" Warning "A field that holds nothing here"
        "take it out, or set the field that it needs";
    UnknownWord "MESH0310" Warning "A value that nobody knows"
        "use one of the values that Kubernetes' documentation lists";
    SelectsNoPod "MESH0311" Info "A service whose selector matches no pod"
        "correct the selector or the pods' labels, or start pods";

    PeerSelectorInRoot "MESH0401" Warning "A PeerAuthentication with a selector in the root namespace"
        "put it into the workload's own namespace, or take the selector out to make it hold for the mesh";
    PortModesWithoutSelector "MESH0402" Warning "Modes of single ports without a selector"
        "add a selector for the workloads whose ports they are";
    DisableForStrict "MESH0403" Warning "A DestinationRule without TLS for a workload that asks for mutual TLS"
        "take tls.mode DISABLE out, or make the workload's PeerAuthentication PERMISSIVE";
    MutualForPlain "MESH0404" Error "A DestinationRule asks for mutual TLS with a workload that has none"
        "enrol the workload and make its PeerAuthentication PERMISSIVE or STRICT, or take tls.mode out";
    PeerConflict "MESH0405" Warning "Two PeerAuthentications for the same workloads"
        "merge them into one: only the oldest is in force";

    DryRunUnclear "MESH0501" Error "A dry run that is none"
        "write the annotation istio.io/dry-run as \"true\" or \"false\"";
    CustomAction "MESH0502" Error "A policy that asks an external authorizer"
        "write it as ALLOW or DENY policies";
    ProviderIgnored "MESH0503" Warning "A provider of a policy that asks nobody"
        "take spec.provider out";
    NeverMatches "MESH0504" Warning "A policy without rules that refuses nothing"
        "add a rule; rules: [{}] matches everything";
    TargetNotHonoured "MESH0505" Error "A policy bound to what layer 4 does not have"
        "bind it to a Service by targetRefs, or to workloads by selector";
    TargetUnknown "MESH0506" Error "A policy bound to a service that is not there"
        "create the service or correct the name; targets are in the policy's own namespace";
    Layer7Rule "MESH0507" Warning "A rule that asks for what layer 4 cannot tell"
        "ask for identities, namespaces, addresses or ports instead, or enforce it in a layer-7 proxy";
    UnknownAttribute "MESH0508" Warning "A rule that asks for what nobody knows"
        "look for a typing mistake";
    PlaintextPasses "MESH0509" Warning "A rule that clients without an identity pass"
        "add principals: [\"*\"] to ask for an identity";
    PrincipalForm "MESH0510" Error "A principal written as a URI"
        "leave spiffe:// out: TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT";
    WildcardInside "MESH0511" Error "A wildcard in the wrong place"
        "put the * at the beginning or at the end, once";
    SelectsNothing "MESH0512" Warning "A policy that selects no pod"
        "correct the selector or the pods' labels; a policy holds in its own namespace";
    AccountUnknown "MESH0513" Warning "A rule names a service account that is not there"
        "correct the name, or create the service account";
    NamespaceUnknown "MESH0514" Warning "A rule names a namespace that is not there"
        "correct the name, or create the namespace";
    OutsideMesh "MESH0515" Warning "A policy whose pods are not in the mesh"
        "enrol them: label their namespace istio.io/dataplane-mode=ambient";
    RuleRedundant "MESH0516" Info "A rule beside one that matches everything"
        "take it out, or take the rule out that matches everything";

    EnrolmentWord "MESH0601" Warning "An enrolment label with a value that nobody knows"
        "set istio.io/dataplane-mode to ambient or none, istio-injection to enabled or disabled";
    EnrolledTwice "MESH0602" Info "A namespace with both enrolment labels"
        "keep istio.io/dataplane-mode, which decides";
    HostNetwork "MESH0603" Warning "A pod of the host's network cannot be enrolled"
        "take the pod's label out, or give it a network of its own";

    EntryResolution "MESH0701" Warning "A ServiceEntry whose endpoints are not looked for"
        "write its endpoints and resolution: STATIC; without it, connections to the host leave as they are, which asks for no entry";
    EntryWithoutAddress "MESH0702" Info "A ServiceEntry that no client can ask for"
        "nothing, where routes lead to it; give it an address that clients reach it at otherwise";
    EntryNetwork "MESH0703" Warning "A network as an address of a ServiceEntry"
        "write the addresses out that clients ask for";
    EntryAddressShared "MESH0704" Info "An address of several hosts"
        "write an entry with an address of its own for each host that has routes of its own";
    EntryEndpoint "MESH0705" Warning "An endpoint that cannot be connected to"
        "give it an IP address";
    EntryEndpointTwice "MESH0706" Warning "An endpoint that is written twice"
        "write it once, with the weight of both";
    EntryWithoutEndpoints "MESH0707" Warning "A ServiceEntry without endpoints"
        "give it endpoints that have addresses, or a workloadSelector";
    EntrySelectsNothing "MESH0708" Warning "A ServiceEntry that selects nothing"
        "correct the selector or the labels; it selects WorkloadEntries and pods of its own namespace";
    EntryHostClash "MESH0709" Warning "A host of a ServiceEntry that is another's"
        "give the host to one of the two; a Kubernetes Service's own is the Service's in any case";
    TunnelWithoutAccount "MESH0710" Warning "HBONE without an identity"
        "name the service account that its certificate shows in serviceAccount; of a ServiceEntry's endpoints, with location: MESH_INTERNAL";
    WorkloadEntryUnselected "MESH0711" Info "A WorkloadEntry that nothing selects"
        "nothing, where clients connect to its address; otherwise correct its labels or the selector that is meant";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::{env, fs, path::Path};

    use super::*;

    /// The table of docs/analysis.md. `MESH_BLESS=1` writes it there.
    #[test]
    fn the_page_lists_them_all() {
        let mut table = String::from("| code | severity | what | what to do |\n|---|---|---|---|\n");
        for code in Code::ALL {
            let (severity, title, remedy) = (code.severity(), code.title(), code.remedy());
            writeln!(table, "| `{code}` | {severity} | {title} | {remedy} |").unwrap();
        }
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/analysis.md");
        let text = fs::read_to_string(&page).unwrap();
        let (begin, end) =
            ("<!-- codes: held against the program by a test -->\n", "<!-- end of codes -->\n");
        let (before, rest) = text.split_once(begin).unwrap();
        let (written, after) = rest.split_once(end).unwrap();
        if env::var_os("MESH_BLESS").is_some() {
            fs::write(&page, format!("{before}{begin}{table}{end}{after}")).unwrap();
            return;
        }
        assert_eq!(written, table, "run this test with MESH_BLESS=1");
    }

    #[test]
    fn they_ascend_and_are_unlike() {
        let numbers: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        for code in Code::ALL {
            assert!(code.as_str().len() == 8 && code.as_str().starts_with("MESH0"));
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!(!code.title().ends_with('.') && !code.remedy().ends_with('.'), "{code}");
        }
    }
}
