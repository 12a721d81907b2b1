//! To which shard the kernel gives the next connection: one shard's part in that.
//!
//! | `steering` | |
//! |---|---|
//! | `even` | to the shards with fewer, by a program that is renewed while connections come |
//! | `cpu` | to the shard on the core that received it, by a program that never changes |
//! | `kernel` | by the kernel's hash of the addresses |
//!
//! The program belongs to the group of all listeners, so any shard can renew it; the one that has
//! just accepted a connection checks the balance, if no shard has for [`LOOK_EVERY`]. A kernel that
//! takes no program spreads connections by its hash, which is logged once.
//!
//! Invariant: nothing here is reached by a delivery. A shard whose connections neither open nor
//! close writes nothing that others read.

use crate::ids::ShardId;
use crate::link::load_table::{LoadNote, LoadTable, ShardLoad};
use crate::net::accept::balance::{self, LOOK_EVERY};
use crate::net::accept::bpf::{self, Program};
use crate::net::io::socket;
use crate::plan::{Plan, ShardPlan, SteeringMode as Policy};
use crate::sys;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

/// One shard's part in steering.
pub(crate) struct Steering {
    load_table: Arc<LoadTable>,
    shard: ShardId,
    listener: RawFd,
    /// This shard's load, as it stands in the table.
    published: ShardLoad,
    /// The same when this shard last checked the balance.
    looked_at: ShardLoad,
    /// The core whose connections this shard should get, if that is the rule.
    core: Option<usize>,
    /// When to check again whether a balance is due. `None`: never.
    next_look: Option<Instant>,
}

impl Steering {
    /// This shard listens, as all before it do. The last one gives the kernel the first program.
    pub(crate) fn begin(
        plan: &Plan,
        shard: ShardId,
        load_table: Arc<LoadTable>,
        listener: RawFd,
    ) -> Steering {
        let shards = load_table.shards();
        let is_last = usize::from(shard.0) + 1 == shards;
        let is_even = plan.steering == Policy::Even && shards > 1;
        let now = Instant::now();
        if is_last && shards > 1 {
            let shares = vec![1; shards];
            let first = match plan.steering {
                Policy::Even => Some(bpf::by_share(&shares)),
                Policy::Cpu => Some(by_core(&plan.shards)),
                Policy::Kernel => None,
            };
            let taken = first.is_some_and(|program| attach(listener, &program));
            if is_even && taken {
                let counts = load_table.counts();
                let in_flight = vec![0; shards];
                load_table.leave_note(Box::new(LoadNote { at: now, counts, shares, in_flight }));
            }
        }
        let next_look = is_even.then_some(now);
        let by_core = plan.steering == Policy::Cpu;
        let core = plan.shards[usize::from(shard.0)].core.filter(|_| by_core);
        Steering {
            load_table,
            shard,
            listener,
            published: ShardLoad::default(),
            looked_at: ShardLoad::default(),
            core,
            next_look,
        }
    }

    /// Whether a connection that was steered by core came to another core's shard.
    pub(crate) fn is_off_core(&self, socket: RawFd) -> bool {
        self.core.is_some_and(|core| socket::received_on(socket) != Some(core))
    }

    /// Publishes this shard's numbers, as they are now.
    pub(crate) fn publish(&mut self, count: ShardLoad) {
        if self.published != count {
            self.published = count;
            self.load_table.publish(self.shard, count);
        }
    }

    /// On each tick: if connections have closed and none was accepted since, the balance is checked
    /// for the next ones.
    pub(crate) fn look_if_changed(&mut self, now: Instant) {
        if self.looked_at != self.published {
            self.look(now);
        }
    }

    /// Connections were accepted: checks whether they are balanced, if that is due.
    pub(crate) fn look(&mut self, now: Instant) {
        if self.next_look.is_none_or(|due| now < due) {
            return;
        }
        self.next_look = Some(now + LOOK_EVERY);
        self.looked_at = self.published;
        let Some(mut note) = self.load_table.take_note() else { return };
        let due = note.at + LOOK_EVERY;
        if now < due {
            self.next_look = Some(due);
            self.looked_at = ShardLoad::default();
            return self.load_table.leave_note(note);
        }
        let counts = self.load_table.counts();
        let look = balance::look(&counts, &note, now);
        if let Some(shares) = look.shares {
            if !attach(self.listener, &bpf::by_share(&shares)) {
                // The program that the kernel has is out of date; this one leaves the choice to the
                // hash. The note is not put back, so no shard steers any more.
                attach(self.listener, &bpf::by_share(&[]));
                return;
            }
            note.shares = shares;
        }
        *note = LoadNote { at: now, counts, in_flight: look.in_flight, shares: note.shares };
        self.load_table.leave_note(note);
    }

    /// This shard has stopped listening, so places in the group are no longer shard numbers.
    pub(crate) fn end(&mut self) {
        self.next_look = None;
    }
}

/// Steering by core is only right where shards really are where the plan put them.
///
/// # Errors
/// Which shard is not on its core, and what to write instead.
pub(crate) fn check_core(plan: &Plan, shard: &ShardPlan) -> io::Result<()> {
    if plan.steering != Policy::Cpu || sys::available_cores()? == shard.core.as_slice() {
        return Ok(());
    }
    let (id, core) = (shard.id.0, shard.core);
    let core = core.map_or("a core".to_owned(), |core| format!("core {core}"));
    Err(io::Error::other(format!(
        "steering = cpu: shard {id} could not be pinned to {core}, so connections cannot be steered \
         to it by core. Allow the process that core, or write steering = even"
    )))
}

fn by_core(shards: &[ShardPlan]) -> Program {
    let cores: Vec<usize> = shards.iter().filter_map(|shard| shard.core).collect();
    assert_eq!(cores.len(), shards.len(), "the plan pins every shard, or does not steer by core");
    bpf::by_core(&cores)
}

/// Gives the kernel a program; answers whether it took it.
fn attach(listener: RawFd, program: &Program) -> bool {
    match socket::attach(listener, program) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                %error,
                "the kernel takes no program for the listeners (SO_ATTACH_REUSEPORT_CBPF): \
                 connections are spread over shards by its hash, a few per cent unevenly"
            );
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Protocol, SockAddr, Socket, Type};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    fn bound(port: u16, shares_port: bool) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_port(shares_port).unwrap();
        socket.set_nonblocking(true).unwrap();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        socket.bind(&SockAddr::from(addr)).unwrap();
        socket
    }

    fn port(socket: &Socket) -> u16 {
        socket.local_addr().unwrap().as_socket().unwrap().port()
    }

    fn plan(steering: Policy, shards: u16) -> Plan {
        let machine = crate::plan::Machine {
            node: crate::ids::NodeId(1),
            cores: vec![0, 1],
            nofile: 9999,
            memory_bytes: None,
        };
        let mut plan = crate::plan::resolve(&Default::default(), &machine).unwrap().plan;
        plan.steering = steering;
        let shard = |id| ShardPlan { id: ShardId(id), core: Some(usize::from(id)) };
        plan.shards = (0..shards).map(shard).collect();
        plan
    }

    /// The listeners that each of so many clients reached.
    fn reached(listeners: &[Socket], clients: usize) -> Vec<usize> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port(&listeners[0])));
        let reach = |_| {
            let _client = TcpStream::connect(addr).unwrap();
            let taken = (0..listeners.len()).find(|at| listeners[*at].accept().is_ok());
            taken.expect("a connection is in some backlog")
        };
        (0..clients).map(reach).collect()
    }

    #[test]
    fn the_place_in_the_kernels_group_is_the_order_of_listening() {
        let held = bound(0, true);
        let listeners: Vec<Socket> = (0..3).map(|_| bound(port(&held), true)).collect();
        // Bound in one order, listening in another; the held one does not listen and has no place.
        for at in [1, 2, 0] {
            listeners[at].listen(16).unwrap();
        }
        for (place, at) in [1, 2, 0].into_iter().enumerate() {
            let mut shares = [0; 3];
            shares[place] = 1;
            assert!(attach(listeners[0].as_raw_fd(), &bpf::by_share(&shares)));
            assert_eq!(reached(&listeners, 8), [at; 8]);
        }
        // The last listener takes the place of one that stops: then places are not numbers any more.
        socket::stop_listening(listeners[1].as_raw_fd());
        assert!(attach(listeners[2].as_raw_fd(), &bpf::by_share(&[1, 0])));
        assert_eq!(reached(&[listeners[0].try_clone().unwrap()], 8), [0; 8]);
    }

    #[test]
    fn the_longest_program_is_taken_by_this_kernel() {
        let listener = bound(0, true);
        listener.listen(16).unwrap();
        assert!(attach(listener.as_raw_fd(), &bpf::by_share(&[1; 1024])));
        let cores: Vec<usize> = (0..1024).map(|shard| shard % 7).collect();
        assert!(attach(listener.as_raw_fd(), &bpf::by_core(&cores)));
    }

    #[test]
    fn the_next_ones_go_to_the_shard_with_fewer() {
        let first = bound(0, true);
        let listeners = [first.try_clone().unwrap(), bound(port(&first), true)];
        let (plan, load_table) = (plan(Policy::Even, 2), Arc::new(LoadTable::new(2)));
        let mut hands: Vec<Steering> = (0..2)
            .map(|shard| {
                let listener = &listeners[usize::from(shard)];
                listener.listen(128).unwrap();
                Steering::begin(&plan, ShardId(shard), load_table.clone(), listener.as_raw_fd())
            })
            .collect();
        let later = Instant::now() + 2 * LOOK_EVERY;
        hands[0].publish(ShardLoad { held: 1000, taken: 0 });
        hands[1].look_if_changed(later);
        hands[0].look_if_changed(later);
        let to_the_second = reached(&listeners, 100).into_iter().sum::<usize>();
        assert!(to_the_second > 90, "{to_the_second} of 100 went to the one who had none");
        // Too early to look again.
        hands[0].publish(ShardLoad { held: 0, taken: 0 });
        hands[1].publish(ShardLoad { held: 1000, taken: 0 });
        hands[0].look(later + LOOK_EVERY / 2);
        assert!(reached(&listeners, 100).into_iter().sum::<usize>() > 90);
        hands[0].look(later + LOOK_EVERY);
        assert!(reached(&listeners, 100).into_iter().sum::<usize>() < 10);
        // A shard that is ending lets go.
        hands[0].publish(ShardLoad { held: 2000, taken: 0 });
        hands.iter_mut().for_each(Steering::end);
        hands[0].look(later + Duration::from_secs(9));
        assert!(reached(&listeners, 100).into_iter().sum::<usize>() < 10);
    }

    #[test]
    fn where_the_kernel_takes_no_program_nobody_steers() {
        let lonely = bound(0, false);
        lonely.listen(16).unwrap();
        let load_table = Arc::new(LoadTable::new(2));
        let plan = plan(Policy::Even, 2);
        let mut hand = Steering::begin(&plan, ShardId(1), load_table.clone(), lonely.as_raw_fd());
        assert!(load_table.take_note().is_none());
        hand.publish(ShardLoad { held: 100, taken: 100 });
        hand.look(Instant::now() + 2 * LOOK_EVERY);
        assert!(load_table.take_note().is_none());
    }

    #[test]
    fn a_shard_that_is_not_on_its_core_cannot_be_steered_to_by_core() {
        let (by_core, even) = (plan(Policy::Cpu, 1), plan(Policy::Even, 1));
        let nowhere = ShardPlan { id: ShardId(3), core: Some(100_000) };
        assert!(check_core(&even, &nowhere).is_ok());
        let error = check_core(&by_core, &nowhere).unwrap_err().to_string();
        assert!(error.contains("shard 3") && error.contains("core 100000"), "{error}");
        let core = sys::available_cores().unwrap()[0];
        let pinned = std::thread::spawn(move || {
            sys::pin_to_core(core).unwrap();
            check_core(&by_core, &ShardPlan { id: ShardId(0), core: Some(core) })
        });
        assert!(pinned.join().unwrap().is_ok());
    }
}
