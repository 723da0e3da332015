//! What translation costs at the size of a large cluster. Run with
//! `cargo test --release -p mesh-userspace -- --ignored --nocapture the_cost_of`.

use std::fmt::Write as _;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{MeshConfig, objects};
use crate::resources::{Change, Translator, decode};

const SERVICES: usize = 10_000;

/// The time that this thread has had of a processor: the machine may be busy with something else.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn service(text: &mut String, index: usize) {
    let (high, low) = (index >> 8, index & 255);
    let _ = write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: svc-{index}\n  namespace: bench\nspec:\n  type: ClusterIP\n  clusterIP: 10.96.{high}.{low}\n  clusterIPs:\n  - 10.96.{high}.{low}\n  ipFamilies:\n  - IPv4\n  selector:\n    app: svc-{index}\n  ports:\n  - name: http\n    port: 80\n    targetPort: 8080\n    protocol: TCP\n"
    );
}

fn slice(text: &mut String, index: usize, last: usize) {
    let (high, low) = (index >> 8, index & 255);
    let _ = write!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: svc-{index}-abcde\n  namespace: bench\n  labels:\n    kubernetes.io/service-name: svc-{index}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\n  protocol: TCP\nendpoints:\n"
    );
    for (pod, address) in
        [format!("10.{}.{high}.{low}", 128 + last), format!("10.192.{high}.{low}")].iter().enumerate()
    {
        let _ = write!(
            text,
            "- addresses:\n  - {address}\n  conditions:\n    ready: true\n    serving: true\n    terminating: false\n  nodeName: node-{}\n  zone: zone-a\n  targetRef:\n    kind: Pod\n    name: svc-{index}-{pod}\n    namespace: bench\n",
            index % 100
        );
    }
}

#[test]
#[ignore = "a measurement, not a check"]
#[expect(clippy::print_stdout, reason = "what it is for")]
fn the_cost_of_ten_thousand_services() {
    let mut text = String::new();
    for index in 0..SERVICES {
        service(&mut text, index);
        slice(&mut text, index, 0);
    }
    let start = now();
    let decoded = decode(&text);
    let parsing = now().saturating_sub(start);
    assert_eq!((decoded.objects.len(), decoded.mistakes.len()), (2 * SERVICES, 0));
    let changes: Vec<Change> = decoded.objects.into_iter().map(|item| Change::Upsert(item.object)).collect();
    let mut translator = Translator::new(MeshConfig::default());
    let start = now();
    let (snapshot, notices) = translator.apply(changes);
    let whole = now().saturating_sub(start);
    assert_eq!((snapshot.services.len(), snapshot.frontends.len(), notices.len()), (SERVICES, SERVICES, 0));
    let mut each: Vec<u128> = (0..1000_usize)
        .map(|round| {
            let mut text = String::new();
            slice(&mut text, round * 7 % SERVICES, round % 60 + 1);
            let change = Change::Upsert(objects(&text).remove(0));
            let start = now();
            let (after, _) = translator.apply([change]);
            let took = now().saturating_sub(start).as_nanos();
            drop(after);
            took
        })
        .collect();
    each.sort_unstable();
    println!(
        "{} MiB of YAML parsed in {parsing:?}, {SERVICES} services translated in {whole:?}, one slice in {} ns (median), {} ns (p99)",
        text.len() >> 20,
        each[500],
        each[990]
    );
}
