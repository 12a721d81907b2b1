//! Programs for the kernel: which listener of the group takes a connection.
//!
//! The listeners of all shards share one port (`SO_REUSEPORT`), and the kernel asks a classic BPF
//! program which of them takes the next connection: the answer is a place in the group, and shard
//! `n` listens at place `n`. An answer beyond the group leaves the choice to the kernel's hash. The
//! program can be exchanged at any time through any of the listeners, without privilege.
//!
//! A choice is a tree of comparisons: with 1024 shards ten of them, not a thousand.
//!
//! Invariant: programs are data; nothing here uses a socket. Every jump is forward and in range.

use libc::sock_filter;

/// A program.
pub(super) type Program = Vec<sock_filter>;

/// The longest program that the kernel takes.
#[cfg(test)]
const PROGRAM_MAX: usize = libc::BPF_MAXINSNS as usize;

/// A place in no group: the kernel's own hash decides.
const NOBODY: u32 = u32::MAX;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
const CPU: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;

/// Each place by chance, in proportion to its share. Shares that are all zero leave it to the kernel.
pub(super) fn by_share(shares: &[u64]) -> Program {
    let all: u128 = shares.iter().map(|share| u128::from(*share)).sum();
    if all == 0 {
        return vec![answer(NOBODY)];
    }
    // Where each share begins, on a scale of all random numbers.
    let mut sum = 0_u128;
    let mut places = Vec::new();
    for (place, share) in shares.iter().enumerate() {
        let begins = (sum << 32) / all;
        sum += u128::from(*share);
        if begins < (sum << 32) / all {
            places.push((begins as u32, place as u32));
        }
    }
    let mut program = vec![load(RANDOM)];
    program.extend(choice(&places));
    program
}

/// The shard on the core that received the connection: `cores[n]` is that of place `n`. Several on one
/// core share it evenly; for a core without a shard the kernel's hash decides.
pub(super) fn by_core(cores: &[usize]) -> Program {
    let mut distinct = cores.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let mut program = vec![load(CPU)];
    for core in distinct {
        let shares: Vec<u64> = cores.iter().map(|other| u64::from(*other == core)).collect();
        let block = match cores.iter().filter(|other| **other == core).count() {
            1 => vec![answer(cores.iter().position(|other| *other == core).unwrap_or(0) as u32)],
            _ => by_share(&shares),
        };
        program.extend(branch(IF_EQUAL, core as u32, block));
    }
    program.push(answer(NOBODY));
    program
}

/// Halves the places until one is left. Each knows the least number with which it is meant.
fn choice(places: &[(u32, u32)]) -> Program {
    if let [(_, place)] = places {
        return vec![answer(*place)];
    }
    let (low, high) = places.split_at(places.len() / 2);
    let (begins, _) = high[0];
    let mut program = branch(IF_AT_LEAST, begins, choice(high));
    program.extend(choice(low));
    program
}

/// `block` if the test holds, else what follows it.
fn branch(test: u16, value: u32, block: Program) -> Program {
    // A test jumps over 255 at most.
    let mut program = match u8::try_from(block.len()) {
        Ok(over) => vec![sock_filter { code: test, jt: 0, jf: over, k: value }],
        Err(_) => vec![
            sock_filter { code: test, jt: 1, jf: 0, k: value },
            sock_filter { code: JUMP, jt: 0, jf: 0, k: block.len() as u32 },
        ],
    };
    program.extend(block);
    program
}

fn load(what: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: what }
}

fn answer(place: u32) -> sock_filter {
    sock_filter { code: ANSWER, jt: 0, jf: 0, k: place }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the kernel would answer: with this random number, on this core.
    pub(in crate::net) fn run(program: &[sock_filter], random: u32, cpu: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { jt } else { jf });
            match code {
                LOAD if k == RANDOM => a = random,
                LOAD if k == CPU => a = cpu,
                IF_AT_LEAST => at += jump(a >= k),
                IF_EQUAL => at += jump(a == k),
                JUMP => at += k as usize,
                ANSWER => return k,
                other => panic!("{other:#x} is not an instruction of ours"),
            }
        }
    }

    /// Random numbers that leave nothing out: so many, evenly over the whole range.
    fn evenly(count: u64) -> impl Iterator<Item = u32> {
        (0..count).map(move |n| ((n << 32) / count) as u32)
    }

    #[test]
    fn each_place_is_meant_as_often_as_its_share_says() {
        let shares = [3, 0, 1, 4, 0, 0, 8, 0];
        let program = by_share(&shares);
        let mut meant = [0; 8];
        for random in evenly(16_000) {
            meant[run(&program, random, 0) as usize] += 1;
        }
        assert_eq!(meant, shares.map(|share| share * 1000));
        assert_eq!(run(&program, 0, 0), 0);
        assert_eq!(run(&program, u32::MAX, 0), 6);
    }

    #[test]
    fn all_counts_of_shards_make_programs_that_the_kernel_has_room_for() {
        for shards in [1, 2, 3, 60, 255, 256, 257, 600, 1024] {
            let program = by_share(&vec![7; shards]);
            assert!(program.len() <= PROGRAM_MAX, "{shards}: {}", program.len());
            let mut meant = vec![0; shards];
            for random in evenly(shards as u64 * 16) {
                meant[run(&program, random, 0) as usize] += 1;
            }
            assert!(meant.iter().all(|n| (15..=17).contains(n)), "{shards}: {meant:?}");
        }
    }

    #[test]
    fn shares_of_any_size_leave_no_random_number_without_a_place() {
        for shares in [vec![u64::MAX; 1024], vec![1, u64::MAX], vec![u64::MAX, 1], vec![0, 0, 1]] {
            let program = by_share(&shares);
            for random in evenly(5000).chain([u32::MAX]) {
                let place = run(&program, random, 0) as usize;
                assert!(shares[place] > 0);
            }
        }
    }

    #[test]
    fn nobody_to_be_preferred_is_left_to_the_kernel() {
        assert_eq!(run(&by_share(&[0, 0]), 5, 5), NOBODY);
        assert_eq!(run(&by_share(&[]), 5, 5), NOBODY);
    }

    #[test]
    fn a_core_means_its_shard() {
        let program = by_core(&[6, 2, 4]);
        for (core, shard) in [(6, 0), (2, 1), (4, 2), (0, NOBODY), (5, NOBODY), (7, NOBODY)] {
            assert_eq!(run(&program, 99, core), shard, "core {core}");
        }
    }

    #[test]
    fn several_shards_on_a_core_share_it_evenly() {
        let cores: Vec<usize> = (0..1024).map(|shard| shard % 2).collect();
        let program = by_core(&cores);
        assert!(program.len() <= PROGRAM_MAX);
        for core in [0, 1] {
            let mut meant = vec![0; 1024];
            for random in evenly(512 * 4) {
                meant[run(&program, random, core) as usize] += 1;
            }
            for (shard, times) in meant.iter().enumerate() {
                assert_eq!(*times, if shard % 2 == core as usize { 4 } else { 0 }, "{shard}");
            }
        }
        let one_each: Vec<usize> = (0..1024).collect();
        let program = by_core(&one_each);
        assert!(program.len() <= PROGRAM_MAX);
        assert!((0..1024).all(|core| run(&program, 1, core) == core));
    }
}
