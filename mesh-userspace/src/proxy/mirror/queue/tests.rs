use proptest::prelude::*;

use super::*;

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new("test"))
}

/// The value of a metric, 0 where it is not there.
fn value(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.render();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or("0 0");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Show(usize),
    Skip(u64),
    Send(usize),
    Finish,
    End(End),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..LONGEST / 3).prop_map(Step::Show),
        1 => (0..1000_u64).prop_map(Step::Skip),
        4 => (0..LONGEST / 2).prop_map(Step::Send),
        1 => Just(Step::Finish),
        1 => prop_oneof![Just(End::ShadowReset), Just(End::Lingered)].prop_map(Step::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done: the shadow gets the beginning of what the client sent, byte for byte; every byte is counted once;
    /// the bounds hold; and in the end all room is free.
    #[test]
    fn a_copy_is_a_beginning_of_what_was_sent_and_every_byte_is_counted_once(
        steps in proptest::collection::vec(step(), 0..40),
        room in LONGEST / 2..LONGEST * 2,
    ) {
        let (room_bytes, room, metrics) = (room, Arc::new(Room::of(room, 1)), metrics());
        let queue = Queue::new(Arc::clone(&room), Arc::clone(&metrics));
        let (mut offered, mut got, mut next) = (0_u64, Vec::new(), 0_u8);
        let mut sent = Vec::new();
        for step in steps {
            match step {
                Step::Show(length) => {
                    let bytes: Vec<u8> = (0..length).map(|n| next.wrapping_add(n as u8)).collect();
                    next = next.wrapping_add(length as u8);
                    queue.show(&bytes);
                    sent.extend(bytes);
                    offered += length as u64;
                }
                Step::Skip(count) => {
                    // What goes past the agent is no longer shown.
                    queue.end(End::Behind);
                    queue.skip(count);
                    offered += count;
                }
                Step::Send(most) => {
                    queue.send(|waiting| {
                        let taken = waiting.len().min(most);
                        got.extend_from_slice(&waiting[..taken]);
                        Ok::<_, ()>(taken)
                    }).unwrap();
                }
                Step::Finish => queue.finish(),
                Step::End(end) => queue.end(end),
            }
            prop_assert!(queue.waiting() <= LONGEST);
            prop_assert_eq!(room.bytes.available_permits() + queue.waiting(), room_bytes);
        }
        prop_assert!(sent.starts_with(&got));
        drop(queue);
        prop_assert_eq!(room.bytes.available_permits(), room_bytes);
        prop_assert_eq!(value(&metrics, "mesh_mirror_copied_bytes_total"), got.len() as u64);
        prop_assert_eq!(value(&metrics, "mesh_mirror_dropped_bytes_total"), offered - got.len() as u64);
        prop_assert_eq!(value(&metrics, "mesh_mirror_connections_total"), 1);
        prop_assert_eq!(value(&metrics, "mesh_mirror_connections_active"), 0);
    }
}

#[tokio::test]
async fn what_does_not_fit_ends_the_copy_for_good() {
    let room = Arc::new(Room::of(LONGEST + 10, 1));
    let one = Queue::new(Arc::clone(&room), metrics());
    one.show(&vec![1; LONGEST]);
    assert_eq!(one.next().await, Ok(Next::Send));
    let other = Queue::new(Arc::clone(&room), metrics());
    other.show(&[2; 11]);
    assert_eq!(other.next().await, Err(End::NoRoom));
    one.show(&[1]);
    assert_eq!(one.next().await, Err(End::Behind));
    assert_eq!((one.waiting(), one.is_open()), (0, false));
    // The room is free again, but a stream with a hole is no copy.
    other.show(&[2]);
    assert_eq!(other.next().await, Err(End::NoRoom));
}

#[tokio::test]
async fn the_clients_end_is_passed_on_after_all_that_it_sent() {
    let queue = Queue::new(Arc::default(), metrics());
    queue.show(b"last");
    queue.finish();
    assert_eq!(queue.next().await, Ok(Next::Send));
    queue.send(|waiting| Ok::<_, ()>(waiting.len())).unwrap();
    assert_eq!(queue.next().await, Ok(Next::Finish));
    queue.client_gone();
    assert_eq!((queue.next().await, queue.ended().await), (Ok(Next::Finish), Ok(())));
}

#[tokio::test]
async fn a_client_that_goes_without_its_end_is_a_reset() {
    let queue = Queue::new(Arc::default(), metrics());
    queue.show(b"half");
    queue.client_gone();
    assert_eq!(queue.next().await, Err(End::ClientReset));
}

#[tokio::test]
async fn both_who_wait_are_told() {
    let queue = Queue::new(Arc::default(), metrics());
    let (next, ended, ()) = tokio::join!(queue.next(), queue.ended(), async {
        tokio::task::yield_now().await;
        queue.end(End::ShadowReset);
    });
    assert_eq!((next, ended), (Err(End::ShadowReset), Err(End::ShadowReset)));
}
