//! One run: faults out of a hat, pauses in which everybody comes to the end and the checker looks, and
//! a line that says how it was.

use crate::checker::{self, Entry, Event, LossReport, Notices, Record, Violation};
use crate::clients::{Member, Publisher, room_name};
use crate::reachability::Reachability;
use crate::redis::wait_until;
use crate::rng::Rng;
use crate::run_state::{ClientLog, RunState};
use crate::system::{Fault, HISTORY, Kind, NODES, OpenFault, System};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ROOMS: usize = 6;
const MEMBERS: usize = 5;
const PUBLISHERS: u64 = 4;
/// Who says the last word in each room. Not one of the publishers.
const LAST_WORD: u64 = 0xff;

/// How long things may take that are not measured, but must come.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks of the checker.
const CHECK_EVERY: Duration = Duration::from_secs(45);
/// For how long a node follows a room that nobody on it is in: as always, or, where the seed is an
/// even number, hardly at all. Then rooms are found anew all the time, and what a server loses that
/// nobody follows is gone, which has to be told.
const LINGER_MS: u64 = 15_000;
const LINGER_SHORT_MS: u64 = 100;
/// A fault that cannot begin now is tried again, but not for ever.
const TRIES_MAX: u32 = 2000;
/// A log that is longer begins anew after a look.
const ENTRIES_MAX: usize = 1_500_000;

/// What was asked for.
pub struct RunOptions {
    kind: Kind,
    seed: u64,
    lasts: Duration,
    /// Empty: all.
    faults: Vec<Fault>,
    count: Option<u32>,
}

impl RunOptions {
    pub fn from_env(kind: Kind, short: Duration) -> RunOptions {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
        };
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
        let faults = std::env::var("CHAOS_FAULTS").unwrap_or_default();
        let faults = faults.split(',').filter(|name| !name.is_empty()).map(|name| {
            let known = Fault::ALL.into_iter().find(|fault| fault.name() == name);
            known.unwrap_or_else(|| panic!("CHAOS_FAULTS: {name} is none of {:?}", names()))
        });
        let count = number("CHAOS_COUNT").map(|count| count as u32);
        let lasts = number("CHAOS_SECONDS").map(Duration::from_secs);
        let faults: Vec<Fault> = faults.collect();
        RunOptions {
            kind,
            seed: number("CHAOS_SEED").unwrap_or(since_1970.as_millis() as u64 % 1_000_000),
            // A count is the end of its own.
            lasts: lasts.unwrap_or(if count.is_some() { Duration::from_secs(7200) } else { short }),
            faults,
            count,
        }
    }
}

fn names() -> Vec<String> {
    Fault::ALL.into_iter().map(Fault::name).collect()
}

/// How it was with one kind of fault.
#[derive(Default)]
struct Totals {
    times: u32,
    worst_deaf: Duration,
    sum_deaf: Duration,
}

struct Run {
    options: RunOptions,
    run_state: Arc<RunState>,
    reachability: Arc<Reachability>,
    system: System,
    rng: Rng,
    notes: Receiver<ClientLog>,
    last_word: Publisher,
    record: Record,
    threads: Vec<JoinHandle<()>>,
    tallies: BTreeMap<Fault, Totals>,
    /// Refused by Redis, such as a failover while another is under way.
    refused: u32,
    /// Slots that the test had to put right in a Cluster's own map.
    mended: usize,
    violations: Vec<Violation>,
    troubles: Vec<String>,
    /// Of logs that were begun anew.
    acked: u64,
    deliveries: u64,
    notices: Notices,
}

/// Plays one run, and panics when something was not as it must be.
pub fn run(options: &RunOptions) {
    let began = Instant::now();
    let mut run = Run::start(options);
    println!("chaos {}: seed {}", options.kind.name(), options.seed);
    run.go_on(began);
    run.run_state.stop.store(true, SeqCst);
    for thread in run.threads.drain(..) {
        if thread.join().is_err() {
            run.troubles.push("a thread of the test has panicked".into());
        }
    }
    run.collect();
    println!("{}", run.summary(began.elapsed()));
    let what = run.what_was_wrong();
    assert!(what.is_empty(), "chaos {} with seed {}:\n{what}", options.kind.name(), options.seed);
}

impl Run {
    fn start(options: &RunOptions) -> Run {
        let run_state = Arc::new(RunState::new(NODES, MEMBERS, ROOMS));
        let linger_ms = if options.seed.is_multiple_of(2) { LINGER_SHORT_MS } else { LINGER_MS };
        let system = System::new(options.kind, run_state.clone(), linger_ms);
        let reachability = Arc::new(Reachability::new(run_state.clone()));
        let (reports, notes) = channel();
        let rng = |who: u64| Rng::new(options.seed.wrapping_mul(1000).wrapping_add(who));
        let last_word =
            Publisher::new(LAST_WORD, run_state.clone(), rng(LAST_WORD), reports.clone());
        let mut run = Run {
            options: RunOptions { faults: options.faults.clone(), ..*options },
            threads: Vec::new(),
            rng: rng(0),
            record: Record {
                history: HISTORY,
                is_strict: std::env::var_os("CHAOS_STRICT").is_some(),
                members: vec![Vec::new(); MEMBERS],
                ..Record::default()
            },
            tallies: BTreeMap::new(),
            refused: 0,
            mended: 0,
            violations: Vec::new(),
            troubles: Vec::new(),
            acked: 0,
            deliveries: 0,
            notices: Notices::default(),
            run_state,
            reachability,
            system,
            notes,
            last_word,
        };
        run.send_people(&reports, rng);
        run
    }

    fn send_people(&mut self, reports: &Sender<ClientLog>, rng: impl Fn(u64) -> Rng) {
        for node in 0..NODES {
            let (ask, probe) = (self.reachability.clone(), self.reachability.clone());
            self.threads.push(std::thread::spawn(move || ask.ask(node)));
            self.threads.push(std::thread::spawn(move || probe.probe(node)));
        }
        let (stalls, judge, to_judge) =
            (self.reachability.clone(), self.reachability.clone(), reports.clone());
        self.threads.push(std::thread::spawn(move || stalls.stalls()));
        self.threads.push(std::thread::spawn(move || judge.judge(&to_judge)));
        wait_until("every node is ready and hears every other", || {
            self.reachability.all_reachable_since(0)
        });
        for who in 0..MEMBERS {
            let member =
                Member::new(who, self.run_state.clone(), rng(1 + who as u64), reports.clone());
            self.threads.push(std::thread::spawn(move || member.run()));
        }
        for who in 1..=PUBLISHERS {
            let publisher =
                Publisher::new(who, self.run_state.clone(), rng(100 + who), reports.clone());
            self.threads.push(std::thread::spawn(move || publisher.run()));
        }
    }

    /// Until the time is over, or all was done that was asked for, or something was wrong.
    fn go_on(&mut self, began: Instant) {
        let possible = self.system.faults();
        let asked = &self.options.faults;
        let faults: Vec<Fault> =
            possible.into_iter().filter(|f| asked.is_empty() || asked.contains(f)).collect();
        assert!(!faults.is_empty(), "nothing of {asked:?} can be done here");
        let mut checked = Instant::now();
        let mut done = 0;
        self.recover(None);
        while self.is_well()
            && began.elapsed() < self.options.lasts
            && self.options.count.is_none_or(|count| done < count)
            && self.refused < TRIES_MAX
        {
            let fault = *self.rng.pick(&faults);
            let is_done = self.suffer(fault, &faults);
            done += u32::from(is_done);
            self.collect();
            let is_mark = self.options.count.is_some() && is_done && done % 10 == 0;
            if (is_mark || checked.elapsed() > CHECK_EVERY) && self.is_well() {
                self.look();
                checked = Instant::now();
                let so_far = self.faults_so_far();
                println!("  {done} faults in {} s: {so_far}", began.elapsed().as_secs());
            }
            let pause_ms = self.rng.below(400) as u64;
            self.run_state.rest(pause_ms);
        }
        if self.is_well() {
            self.look();
        }
    }

    fn is_well(&self) -> bool {
        self.violations.is_empty() && self.troubles.is_empty()
    }

    fn begin(&mut self, fault: Fault) -> Option<OpenFault> {
        let open = self.system.begin(fault, &mut self.rng)?;
        if self.system.may_lose(fault) {
            self.record.history = 0; // whatever is missing may be gone
        }
        Some(open)
    }

    /// One fault, perhaps with another one in it, from its beginning until everything flows again.
    /// `false`: it could not be done now.
    fn suffer(&mut self, fault: Fault, faults: &[Fault]) -> bool {
        self.reachability.deaf_us.store(0, SeqCst);
        let lasts = self.system.lasts(fault, &mut self.rng);
        let Some(open) = self.begin(fault) else {
            self.refused += 1;
            return false;
        };
        if std::env::var_os("CHAOS_ALOUD").is_some() {
            println!("    {} µs: {} for {lasts:?}", self.run_state.now_us(), fault.name());
        }
        let other = *self.rng.pick(faults);
        if self.options.count.is_none() && self.rng.chance(30) && other.goes_with(fault) {
            self.run_state.rest(lasts.as_millis() as u64 / 2);
            if let Some(other) = self.begin(other) {
                self.run_state.rest(lasts.as_millis() as u64 / 2);
                self.end(&other);
                self.tallies.entry(other.fault).or_default().times += 1;
            }
        } else {
            self.run_state.rest(lasts.as_millis() as u64);
        }
        self.end(&open);
        self.recover(Some(fault));
        let deaf = Duration::from_micros(self.reachability.deaf_us.load(SeqCst));
        let totals = self.tallies.entry(fault).or_default();
        totals.times += 1;
        totals.worst_deaf = totals.worst_deaf.max(deaf);
        totals.sum_deaf += deaf;
        true
    }

    fn end(&mut self, open: &OpenFault) {
        let began = Instant::now();
        while !self.system.may_end(open) && began.elapsed() < PATIENCE {
            self.run_state.rest(20);
        }
        self.system.end(open);
    }

    /// Waits until everything flows again: in the rooms of the probes between all nodes, and in
    /// every room with a history.
    fn recover(&mut self, after: Option<Fault>) {
        let since = self.run_state.now_us();
        let began = Instant::now();
        let flows = |run: &Run| {
            let acked = run.run_state.acked_sent_us.iter().all(|sent| sent.load(SeqCst) > since);
            acked && run.reachability.all_reachable_since(since) && run.system.is_whole()
        };
        let mut is_mended = false;
        while !flows(self) {
            if let Some(node) = self.system.dead_node() {
                self.troubles.push(format!("node {node} has ended by itself, after {after:?}"));
                return;
            }
            if !is_mended && began.elapsed() > PATIENCE / 4 && !self.system.is_whole() {
                self.mended += self.system.repair();
                is_mended = true;
            }
            if began.elapsed() > PATIENCE {
                let rooms = self.run_state.acked_sent_us.iter().enumerate();
                let stuck: Vec<usize> = rooms
                    .filter(|(_, at)| at.load(SeqCst) <= since)
                    .map(|(room, _)| room)
                    .collect();
                self.troubles.push(format!(
                    "not well {PATIENCE:?} after {after:?}: servers whole: {}, ready: {:?}, no publish \
                     in rooms {stuck:?}, not heard: {}{}",
                    self.system.is_whole(),
                    self.run_state.progress.iter().map(|progress| progress.is_ready.load(SeqCst)).collect::<Vec<_>>(),
                    self.reachability.unreachable_pairs(since),
                    self.system.described(),
                ));
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn collect(&mut self) {
        while let Ok(note) = self.notes.try_recv() {
            match note {
                ClientLog::Member { who, entry } => self.record.members[who].push(entry),
                ClientLog::AckedPublish(acked) => self.record.acked.push(acked),
                ClientLog::Trouble(what) => self.troubles.push(what),
            }
        }
    }

    /// Everybody comes to the end, and the checker looks at all that was heard.
    fn look(&mut self) {
        self.run_state.quiet.store(true, SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while self.run_state.busy.load(SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.last_word.deadline = Some(deadline);
        let words = self.last_word.publish(&(0..ROOMS).collect::<Vec<_>>());
        let missing = |run_state: &RunState| {
            let heard = |who: usize, room: usize| run_state.heard_last[who][room].load(SeqCst);
            let all = (0..MEMBERS).flat_map(|who| (0..ROOMS).map(move |room| (who, room)));
            all.filter(|&(who, room)| Some(&heard(who, room)) != words.get(room))
                .collect::<Vec<_>>()
        };
        while !missing(&self.run_state).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let missing = missing(&self.run_state);
        self.collect();
        if !missing.is_empty() {
            self.troubles
                .push(format!("(member, room) not at the end after {PATIENCE:?}: {missing:?}"));
        }
        let verdict = checker::check(&self.record);
        self.violations = verdict.violations;
        if self.is_well() && self.record.members.iter().map(Vec::len).sum::<usize>() > ENTRIES_MAX {
            self.begin_anew(&verdict.notices);
        }
        self.run_state.quiet.store(false, SeqCst);
    }

    /// Everybody is at the end and has heard everything: what was is no longer needed.
    fn begin_anew(&mut self, notices: &Notices) {
        add(&mut self.notices, notices);
        self.acked += self.record.acked.len() as u64;
        self.record.acked.clear();
        for log in &mut self.record.members {
            self.deliveries += deliveries(log);
            let mut last: BTreeMap<usize, Entry> = BTreeMap::new();
            for entry in log.drain(..) {
                if let Event::Heard { at, .. } = entry.event {
                    let event = Event::Joined { at, since: None, reports: LossReport::Fresh };
                    last.insert(entry.room, Entry { event, ..entry });
                }
            }
            log.extend(last.into_values());
        }
    }

    fn faults_so_far(&self) -> String {
        let mut text = String::new();
        for (fault, totals) in &self.tallies {
            write!(text, "{} {}, ", fault.name(), totals.times).expect("a String takes everything");
        }
        text.trim_end_matches(", ").to_owned()
    }

    fn summary(&self, took: Duration) -> String {
        let verdict = checker::check(&self.record);
        let mut notices = self.notices.clone();
        add(&mut notices, &verdict.notices);
        let acked = self.acked + self.record.acked.len() as u64;
        let heard: u64 = self.record.members.iter().map(|log| deliveries(log)).sum();
        let mut deaf = String::new();
        for (fault, totals) in &self.tallies {
            let (worst, mean) = (totals.worst_deaf, totals.sum_deaf / totals.times.max(1));
            write!(deaf, " {} {:.1}/{:.1}", fault.name(), mean.as_secs_f64(), worst.as_secs_f64())
                .expect("a String takes everything");
        }
        format!(
            "chaos {} seed {}: {:.0} s; faults: {}; {acked} publishes acknowledged, {} deliveries; \
             notices: {notices}; violations {}; worst time deaf and ready {:.2} s (machine stalls \
             {:.2} s); slots mended by hand {}; time deaf, mean/worst in s:{deaf}",
            self.options.kind.name(),
            self.options.seed,
            took.as_secs_f64(),
            self.faults_so_far(),
            self.deliveries + heard,
            self.violations.len() + self.troubles.len(),
            self.reachability.worst_unreachable_while_ready().as_secs_f64(),
            self.run_state.stalled_us.load(SeqCst) as f64 / 1e6,
            self.mended,
        )
    }

    /// Empty: nothing.
    fn what_was_wrong(&self) -> String {
        let mut text = String::new();
        self.troubles.iter().take(20).for_each(|what| text += &format!("{what}\n"));
        for violation in self.violations.iter().take(5) {
            text += &self.shown(violation);
        }
        if self.violations.len() > 5 {
            text += &format!("and {} more\n", self.violations.len() - 5);
        }
        text
    }

    /// A violation, and what the member heard in that room around it.
    fn shown(&self, violation: &Violation) -> String {
        const AROUND: usize = 12;
        let room = room_name(violation.room);
        let Some(who) = violation.member else {
            return format!("in {room}: {}\n", violation.why);
        };
        let mut text = format!("member {who} in {room}: {}\n", violation.why);
        let log = self.record.members[who].iter().enumerate();
        let own: Vec<_> = log.filter(|(_, entry)| entry.room == violation.room).collect();
        let at = own.iter().position(|(number, _)| *number >= violation.entry).unwrap_or(own.len());
        let shown = own.iter().skip(at.saturating_sub(AROUND)).take(2 * AROUND);
        for (number, entry) in shown {
            let mark = if *number == violation.entry { ">>" } else { "  " };
            let seconds = entry.at_us as f64 / 1e6;
            writeln!(text, "{mark} {seconds:10.3} {}", entry.event).expect("a String");
        }
        text
    }
}

impl Drop for Run {
    /// A panic on the way: nobody goes on without a stage.
    fn drop(&mut self) {
        self.run_state.stop.store(true, SeqCst);
    }
}

fn deliveries(log: &[Entry]) -> u64 {
    log.iter().filter(|entry| matches!(entry.event, Event::Heard { .. })).count() as u64
}

fn add(all: &mut Notices, some: &Notices) {
    all.lost += some.lost;
    all.acked_unheard += some.acked_unheard;
    all.not_lost_at_all += some.not_lost_at_all;
    for (reason, times) in &some.not_recovered {
        *all.not_recovered.entry(reason.clone()).or_default() += times;
    }
}
