//! What threads share on the way of a delivery: which lines of cache, and how often atomically.
//!
//! Two kinds of proof. *Addresses*: everything that two threads write to is made once at the start,
//! by `link::channel::window` and for the metrics; its places are looked at, with the allocator and
//! the limits of the real program. *Instructions*: a message is sent from the backplane to two
//! shards, each on a thread of its own, and every instruction of all three is looked at
//! (`common/stepper.rs`). What is said of a delivery, "no atomic", is counted here, and what is
//! said of shards, "they share nothing", comes out as two sets of lines without a common one.
//!
//! What they do share is exact: a frame for several shards is one buffer, which they read, with one
//! count of its owners, which each of them decrements once, whatever the number of its members.
#![allow(unsafe_code)] // implementing `GlobalAlloc` is unsafe

#[cfg(target_arch = "x86_64")]
#[path = "common/stepper.rs"]
mod stepper;

use campanile::link::bell::Bell;
use campanile::link::channel::window;
use campanile::link::health::Health;
use campanile::metrics::{BackplaneMirror, ShardMirror};
use campanile::policy::limits::Limits;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

/// The program's own allocator: it decides what lies beside what.
struct Noting;

const NOTES_MAX: usize = 2048;

thread_local! {
    static NOTES: Cell<Option<&'static Notes>> = const { Cell::new(None) };
}

/// Living allocations of one thread: address and size.
type Notes = [Cell<(usize, usize)>; NOTES_MAX];

// SAFETY: everything is handed to mimalloc unchanged; notes are plain cells of this thread.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: our caller's promise about `layout` is the one mimalloc asks for.
        let memory = unsafe { mimalloc::MiMalloc.alloc(layout) };
        if let Some(notes) = NOTES.get() {
            let free = notes.iter().find(|note| note.get() == (0, 0));
            free.expect("more allocations than can be noted").set((memory as usize, layout.size()));
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(notes) = NOTES.get() {
            let known = notes.iter().find(|note| note.get().0 == memory as usize);
            if let Some(note) = known {
                note.set((0, 0));
            }
        }
        // SAFETY: `memory` came from mimalloc with this layout.
        unsafe { mimalloc::MiMalloc.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// What `make` made, and where everything lies that it allocated and kept.
fn noting<T>(make: impl FnOnce() -> T) -> (T, Vec<(usize, usize)>) {
    let notes: &'static Notes = Box::leak(Box::new([const { Cell::new((0, 0)) }; NOTES_MAX]));
    NOTES.set(Some(notes));
    let made = make();
    NOTES.set(None);
    let mut places: Vec<_> = notes.iter().map(Cell::get).filter(|note| note.1 > 0).collect();
    places.sort_unstable();
    (made, places)
}

const LINE: usize = 128;

/// Two neighbours: address and size of each.
type Pair = [(usize, usize); 2];

/// Neighbours that lie in one line.
fn in_one_line(places: &[(usize, usize)]) -> Vec<Pair> {
    let pairs = places.windows(2).map(|pair| [pair[0], pair[1]]);
    pairs.filter(|[(at, bytes), (next, _)]| (at + bytes - 1) / LINE == next / LINE).collect()
}

#[test]
fn no_two_parts_of_the_window_lie_in_one_line() {
    let limits = Limits::PRODUCTION;
    let make = || window(60, limits.uplink_items_max, limits.downlink_items_max);
    let (_window, places) = noting(|| make().expect("sixty bells"));
    // For each shard two channels with their buffers, a bell and a flag.
    assert!(places.len() >= 60 * 6, "{} allocations", places.len());
    assert_eq!(in_one_line(&places), [] as [Pair; 0]);
    assert_eq!(in_one_line(&[(0, 100), (120, 8)]), [[(0, 100), (120, 8)]]);
}

#[test]
fn no_two_shards_publish_their_numbers_into_one_line() {
    let make = || (0..60).map(|_| std::sync::Arc::new(ShardMirror::default())).collect::<Vec<_>>();
    let (_mirrors, places) = noting(make);
    assert!(places.len() > 60);
    assert_eq!(in_one_line(&places), [] as [Pair; 0]);
}

/// Whatever is shared between threads begins a line and fills its last one.
#[test]
fn what_threads_share_is_padded() {
    const fn is_padded<T>() -> bool {
        align_of::<T>() >= LINE && size_of::<T>().is_multiple_of(LINE)
    }
    const { assert!(is_padded::<Bell>()) }
    const { assert!(is_padded::<Health>()) }
    const { assert!(is_padded::<ShardMirror>()) }
    const { assert!(is_padded::<BackplaneMirror>()) }
}

#[cfg(target_arch = "x86_64")]
mod delivery {
    use super::stepper::{Seen, see, watched};
    use bytes::Bytes;
    use campanile::auth::{AnonymousSecret, Identity};
    use campanile::backplane::local::Local;
    use campanile::backplane::message::Message;
    use campanile::ids::{NodeId, ShardId, TopicName};
    use campanile::link::Uplink;
    use campanile::link::channel::{BackplaneEnd, ShardEnd, window};
    use campanile::link::health::Health;
    use campanile::policy::limits::Limits;
    use campanile::policy::rights::Rights;
    use campanile::protocol::dialect::Encoding;
    use campanile::shard::delivery::batch::SendBatch;
    use campanile::shard::{Opening, Shard, ShardConfig};
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    /// Deliveries before the one that is looked at.
    const WARM_UPS: usize = 20;

    /// A shard's thread between two sleeps.
    struct Room {
        shard: Shard,
        end: ShardEnd,
        batch: SendBatch,
        sends: usize,
    }

    impl Room {
        fn new(end: ShardEnd, limits: Limits) -> Room {
            let config = ShardConfig {
                id: end.id,
                node: NodeId(1),
                node_name: "n".into(),
                limits,
                namespaces: Default::default(),
                anonymous_secret: AnonymousSecret::new([0; 16]),
            };
            Room { shard: Shard::new(config), end, batch: SendBatch::default(), sends: 0 }
        }

        fn open(&mut self, socket_key: u32) {
            let conn = self.shard.handle_accept(socket_key, 1).expect("far from every limit");
            let rights =
                Rights { publish: true, publish_unjoined: false, send: true, broadcast: true };
            let user = Some(format!("user{}-{socket_key}", self.end.id.0).into());
            let opening = Opening {
                identity: Identity {
                    user,
                    rights,
                    expires_unix_s: None,
                    grants: None,
                    info: None,
                    mark: None,
                },
                response: Bytes::from_static(b"101"),
                rooms: vec!["tower".to_owned()],
                encoding: Encoding::NATIVE,
            };
            self.shard.handle_open(conn, opening);
            self.turn();
        }

        /// What a visit does, without the system calls.
        fn turn(&mut self) {
            while let Some(item) = self.end.try_recv() {
                self.shard.handle_downlink(item, 1);
            }
            while self.shard.has_sends() {
                self.shard.take_batch(&mut self.batch);
                self.sends += self.batch.ops().len();
                self.batch.finish();
            }
            while let Some(item) = self.shard.poll_uplink() {
                assert!(self.end.try_send(item).is_ok(), "the window is wide enough");
            }
            assert!(self.end.may_sleep());
        }
    }

    fn take_joins(local: &mut Local) {
        for index in 0..local.end.shards.len() {
            while let Some(item) = local.end.shards[index].try_recv() {
                let Uplink::Join { topic, at, encoding } = item else {
                    panic!("nobody leaves or publishes")
                };
                if let Some(key) = local.join(topic, ShardId(index as u16), encoding, at) {
                    local.confirm_subscription(key, 0);
                }
            }
        }
        local.flush();
    }

    fn message(local: &mut Local) {
        let payload =
            br#"{"some":"payload","of":"an ordinary length","which":"is a hundred bytes"}"#;
        let (topic, from) = (TopicName::room("tower"), Some("ann"));
        local.message(&Message {
            topic: topic.as_str(),
            from,
            info: None,
            payload,
            except: None,
            conflate_key: None,
            key: None,
        });
        local.flush();
    }

    /// What is seen of one message: first of the backplane, then of each shard.
    fn see_message(shards: u16, members: u32, limits: Limits) -> Vec<Seen> {
        let seen = see(|| {
            // Answers wait for nobody here, so all joins must fit.
            let room = 2 * members as usize + 16;
            let (ends, end, _ops) = window(shards, room, room).expect("bells");
            let steps = Arc::new(Barrier::new(usize::from(shards) + 1));
            let threads: Vec<_> = ends
                .into_iter()
                .map(|end| {
                    let steps = steps.clone();
                    std::thread::spawn(move || run_shard(end, members, limits, shards, &steps))
                })
                .collect();
            run_backplane(end, shards, &steps);
            threads.into_iter().for_each(|thread| thread.join().expect("it did not panic"));
        });
        assert_eq!(seen.len(), 1 + usize::from(shards));
        seen
    }

    fn run_shard(end: ShardEnd, members: u32, limits: Limits, shards: u16, steps: &Barrier) {
        let mut room = Room::new(end, limits);
        (0..members).for_each(|socket_key| room.open(socket_key));
        steps.wait(); // Joins are in the window.
        steps.wait(); // They are answered.
        room.turn();
        steps.wait(); // The answers are taken.
        for round in 0..=WARM_UPS {
            room.sends = 0;
            steps.wait(); // The message is in the window.
            for whose in 0..shards {
                if whose == room.end.id.0 {
                    match round {
                        WARM_UPS => watched(|| room.turn()),
                        _ => room.turn(),
                    }
                }
                steps.wait();
            }
            assert_eq!(room.sends, members as usize);
        }
    }

    fn run_backplane(end: BackplaneEnd, shards: u16, steps: &Barrier) {
        let health = Arc::new(Health::default());
        let mut local = Local::new(NodeId(1), end, health, Duration::ZERO, 0);
        steps.wait();
        take_joins(&mut local);
        steps.wait();
        steps.wait();
        for round in 0..=WARM_UPS {
            match round {
                WARM_UPS => watched(|| message(&mut local)),
                _ => message(&mut local),
            }
            (0..=shards).for_each(|_| {
                steps.wait();
            });
        }
    }

    #[test]
    fn a_message_costs_as_many_atomics_for_ten_thousand_members_as_for_ten() {
        let one_batch = Limits { send_batch_max: 16_384, ..Limits::PRODUCTION };
        let [few, many] = [10, 10_000].map(|members| see_message(1, members, one_batch));
        let atomics = |seen: &[Seen]| seen.iter().map(Seen::atomics_len).collect::<Vec<_>>();
        println!("backplane and shard: {:?} atomics", atomics(&few));
        assert_eq!(atomics(&few), atomics(&many));
        assert!(many[1].instructions > 10_000, "{}: it was not watched", many[1].instructions);
        // Taking from the channel, the last look before the sleep, the count of the frame's owners.
        assert!(few[1].atomics_len() > 0);
    }

    /// A long list is written in several batches, and each holds the frame for itself.
    #[test]
    fn a_further_batch_costs_two_atomics() {
        let limits = Limits { send_batch_max: 256, ..Limits::PRODUCTION };
        let in_batches = |batches: u32| see_message(1, 256 * batches, limits)[1].atomics_len();
        assert_eq!(in_batches(6), in_batches(2) + 4 * 2);
    }

    #[test]
    fn two_shards_that_hear_a_message_write_to_no_common_line_but_its_count_of_owners() {
        let seen = see_message(2, 50, Limits::PRODUCTION);
        let [_, one, two] = &seen[..] else { panic!("three threads") };
        let common: Vec<_> = one.written.intersection(&two.written).collect();
        println!("written by both: {} lines of {}", common.len(), one.written.len());
        assert_eq!(common.len(), 1, "{common:x?}");
        for shard in [one, two] {
            assert_eq!(shard.atomics.get(common[0]), Some(&1), "its own share of the frame goes");
        }
        // Nor does one write what the other only reads.
        for (writer, reader) in [(one, two), (two, one)] {
            assert_eq!(writer.written.intersection(&reader.touched).count(), 1);
        }
    }
}
