//! What happened, as plain data, and the judge over it.
//!
//! The judge knows nothing of shards: it compares what each client sent and heard with the one log
//! of the backplane and with what the backplane dropped. It is tested itself (`days.rs`): a history
//! with one event moved, doubled or taken away must be refused.

use std::collections::{BTreeMap, HashMap, HashSet};

/// A moment: steps of the world, which happen one at a time.
pub type Step = u64;

/// One message as the backplane logged it.
#[derive(Clone, Debug)]
pub struct Said {
    pub step: Step,
    pub topic: String,
    /// Which client, and which of its messages.
    pub by: usize,
    pub number: u64,
    pub echo: bool,
    /// What became of it on each shard where somebody listened.
    pub fates: BTreeMap<usize, Fate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Handed to the shard, not written to everyone yet.
    OnItsWay,
    /// Dropped on the way; members must be told that something was lost.
    Dropped(Step),
    /// Every write was made, or waits in an outbox.
    Written(Step),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    Join {
        id: u64,
        room: String,
    },
    Leave {
        id: u64,
        room: String,
    },
    Publish {
        id: Option<u64>,
        topic: String,
        number: u64,
        echo: bool,
    },
    Other {
        id: u64,
    },
    /// A close frame, garbage, or the end of the socket: nothing is owed from here on.
    Goodbye,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Welcome,
    Ok { id: Option<u64>, room: Option<String> },
    Error { id: Option<u64>, code: String },
    Message { topic: String, from: String, by: usize, number: u64 },
    Lost { topic: String, count: u64 },
    Reconnect,
    Close(u16),
    End,
}

/// One client's life.
#[derive(Clone, Debug, Default)]
pub struct Life {
    pub tower: usize,
    pub user: String,
    /// Rooms it asked for in its URL.
    pub rooms: Vec<String>,
    pub sent: Vec<(Step, Sent)>,
    pub heard: Vec<(Step, Heard)>,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    pub lives: Vec<Life>,
    pub said: Vec<Said>,
}

type Verdict = Result<(), String>;

macro_rules! must {
    ($condition:expr, $($why:tt)+) => {
        if !$condition { return Err(format!($($why)+)); }
    };
}

impl Life {
    fn heard_end(&self) -> bool {
        self.heard.iter().any(|(_, heard)| matches!(heard, Heard::Close(_) | Heard::End))
    }

    fn goodbye(&self) -> Option<Step> {
        self.sent.iter().find(|(_, sent)| *sent == Sent::Goodbye).map(|(step, _)| *step)
    }

    /// Whether everything is owed to it: it neither left nor was sent away.
    pub fn is_alive(&self) -> bool {
        self.goodbye().is_none() && !self.heard_end()
    }

    fn messages<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = (usize, u64)> + 'a {
        self.heard.iter().filter_map(move |(_, heard)| match heard {
            Heard::Message { topic: to, by, number, .. } if to == topic => Some((*by, *number)),
            _ => None,
        })
    }

    /// The spans in which it surely was in a topic: from what told it so to what it did about it.
    fn sure(&self, topic: &str) -> Vec<(Step, Step)> {
        let end = self.goodbye().unwrap_or(Step::MAX);
        let Some(room) = topic.strip_prefix("r:") else {
            if topic.strip_prefix("u:").is_some_and(|user| user != self.user) {
                return Vec::new();
            }
            let welcome = self.heard.iter().find(|(_, heard)| *heard == Heard::Welcome);
            return welcome.map(|(step, _)| (*step, end)).into_iter().collect();
        };
        let leaves: Vec<Step> = self
            .sent
            .iter()
            .filter(|(_, sent)| matches!(sent, Sent::Leave { room: r, .. } if r == room))
            .map(|(step, _)| *step)
            .collect();
        let mut spans: Vec<(Step, Step)> = Vec::new();
        for (step, heard) in &self.heard {
            let Heard::Ok { id, room: Some(joined) } = heard else { continue };
            let Some(asked) = self.asked_to_join(*id, room).filter(|_| joined == room) else {
                continue;
            };
            let until = leaves.iter().copied().find(|leave| *leave > asked).unwrap_or(end);
            if until > *step && spans.last().is_none_or(|(_, last)| *last < until) {
                spans.push((*step, until.min(end)));
            }
        }
        spans
    }

    /// When the join that an `ok` answers was sent.
    fn asked_to_join(&self, id: Option<u64>, room: &str) -> Option<Step> {
        let Some(id) = id else { return self.rooms.iter().any(|r| r == room).then_some(0) };
        self.sent.iter().find_map(|(step, sent)| match sent {
            Sent::Join { id: asked, room: r } if *asked == id && r == room => Some(*step),
            _ => None,
        })
    }
}

impl History {
    /// Judges all of it.
    pub fn judge(&self) -> Verdict {
        self.log_is_what_was_sent()?;
        for (who, life) in self.lives.iter().enumerate() {
            let named = |why: String| format!("client {who}: {why}\n{life:#?}");
            answers_match(life).map_err(named)?;
            self.outcomes_are_true(who, life).map_err(named)?;
            begins_and_ends(life).map_err(named)?;
            self.only_where_it_is(life).map_err(named)?;
            for topic in self.topics() {
                self.in_order(who, life, topic).map_err(named)?;
                self.nothing_missing(who, life, topic).map_err(named)?;
            }
        }
        Ok(())
    }

    fn topics(&self) -> HashSet<&str> {
        self.said.iter().map(|said| &said.topic[..]).collect()
    }

    /// Each message once, as its client sent it, in the order in which it sent them.
    fn log_is_what_was_sent(&self) -> Verdict {
        let mut last: HashMap<usize, u64> = HashMap::new();
        for said in &self.said {
            let sent = self.lives[said.by].sent.iter().any(|(_, sent)| {
                matches!(sent, Sent::Publish { topic, number, echo, .. }
                    if *topic == said.topic && *number == said.number && *echo == said.echo)
            });
            must!(sent, "nobody sent {said:?}");
            let before = last.insert(said.by, said.number);
            must!(before < Some(said.number), "out of order or twice: {said:?}");
        }
        Ok(())
    }

    /// A message was carried out if and only if its sender was told so.
    fn outcomes_are_true(&self, who: usize, life: &Life) -> Verdict {
        for (_, sent) in &life.sent {
            let Sent::Publish { id: Some(id), number, .. } = sent else { continue };
            let logged = self.said.iter().any(|said| said.by == who && said.number == *number);
            for (_, heard) in &life.heard {
                match heard {
                    Heard::Ok { id: answered, .. } if *answered == Some(*id) => {
                        must!(logged, "told ok, but message {number} was never sent on");
                    }
                    Heard::Error { id: answered, code } if *answered == Some(*id) => {
                        let open = code == "outcome_unknown";
                        must!(open || !logged, "told {code}, but message {number} was sent on");
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Nobody hears a topic it is not in.
    fn only_where_it_is(&self, life: &Life) -> Verdict {
        for (at, (step, heard)) in life.heard.iter().enumerate() {
            let Heard::Message { topic, from, by, number } = heard else { continue };
            must!(self.lives[*by].user == *from, "{from} is not who sent {number} of {by}");
            if let Some(user) = topic.strip_prefix("u:") {
                must!(user == life.user, "heard what was for {user}");
            }
            let Some(room) = topic.strip_prefix("r:") else { continue };
            must!(may_hear(life, room, at, *step), "at {step} heard {topic} without being in it");
        }
        Ok(())
    }

    /// What it heard of a topic is in the log's order, each once, and nothing it asked not to hear.
    fn in_order(&self, who: usize, life: &Life, topic: &str) -> Verdict {
        let mut log = self.said.iter().filter(|said| said.topic == topic);
        for (by, number) in life.messages(topic) {
            let found = log.find(|said| (said.by, said.number) == (by, number));
            let Some(said) = found else {
                return Err(format!(
                    "{topic}: {number} of {by} is out of order, or twice, or made up"
                ));
            };
            must!(said.echo || said.by != who, "{topic}: heard its own {number} in spite of echo");
        }
        Ok(())
    }

    /// What it must have heard, it heard; what was dropped, it was told of.
    fn nothing_missing(&self, who: usize, life: &Life, topic: &str) -> Verdict {
        let heard: HashSet<(usize, u64)> = life.messages(topic).collect();
        let log: Vec<&Said> = self.said.iter().filter(|said| said.topic == topic).collect();
        let last_heard = log.iter().rposition(|said| heard.contains(&(said.by, said.number)));
        let mut dropped = 0;
        for (from, until) in life.sure(topic) {
            for (at, said) in log.iter().enumerate().filter(|(_, said)| said.step > from) {
                if !said.echo && said.by == who {
                    continue;
                }
                let owed = life.is_alive() || last_heard.is_some_and(|last| at < last);
                match said.fates.get(&life.tower) {
                    Some(Fate::Written(step)) if *step < until && owed => {
                        let it_did = heard.contains(&(said.by, said.number));
                        must!(it_did, "{topic}: never heard {said:?}");
                    }
                    // Only rooms say since when losses are told (`ok` to a join), and who leaves may
                    // be gone before that.
                    Some(Fate::Dropped(_)) if until == Step::MAX && life.is_alive() => {
                        dropped += u64::from(!topic.starts_with("u:"));
                    }
                    Some(Fate::OnItsWay) if life.is_alive() && until == Step::MAX => {
                        return Err(format!("{topic}: {said:?} still waits"));
                    }
                    None if topic.starts_with("r:") && until == Step::MAX && life.is_alive() => {
                        return Err(format!("{topic}: nobody listened for {said:?}"));
                    }
                    _ => {}
                }
            }
        }
        self.losses_told(life, topic, dropped)
    }

    /// Every loss is told, and none is made up.
    fn losses_told(&self, life: &Life, topic: &str, at_least: u64) -> Verdict {
        let told: u64 = life.heard.iter().map(|(_, heard)| lost_of(heard, topic)).sum();
        let here = |said: &&Said| {
            said.topic == topic && matches!(said.fates.get(&life.tower), Some(Fate::Dropped(_)))
        };
        let at_most = self.said.iter().filter(here).count() as u64;
        must!(told >= at_least, "{topic}: {at_least} were lost, it was told of {told}");
        must!(told <= at_most, "{topic}: {at_most} were lost, it was told of {told}");
        Ok(())
    }
}

fn lost_of(heard: &Heard, topic: &str) -> u64 {
    match heard {
        Heard::Lost { topic: to, count } if to == topic => *count,
        _ => 0,
    }
}

/// Whether a client may hear `room` as the `at`-th thing it hears, at `step`: it has asked to be in,
/// and has not been told since that it is out.
fn may_hear(life: &Life, room: &str, at: usize, step: Step) -> bool {
    let asked = |(when, sent): &(Step, Sent)| match sent {
        Sent::Join { room: r, .. } if r == room && *when <= step => Some(*when),
        _ => None,
    };
    let in_url = life.rooms.iter().any(|r| r == room).then_some(0);
    let Some(asked) = life.sent.iter().filter_map(asked).next_back().or(in_url) else {
        return false;
    };
    let left_after = |(when, sent): &(Step, Sent)| match sent {
        Sent::Leave { id, room: r } if r == room && *when > asked => Some(*id),
        _ => None,
    };
    let leaves: Vec<u64> = life.sent.iter().filter_map(left_after).collect();
    let out = |(_, heard): &(Step, Heard)| matches!(heard, Heard::Ok { id: Some(id), .. } if leaves.contains(id));
    !life.heard[..at].iter().any(out)
}

/// Every request with an id is answered exactly once; at most once when the client has ended.
fn answers_match(life: &Life) -> Verdict {
    let mut answers: HashMap<u64, usize> = HashMap::new();
    for (_, sent) in &life.sent {
        let id = match sent {
            Sent::Join { id, .. } | Sent::Leave { id, .. } | Sent::Other { id } => Some(*id),
            Sent::Publish { id, .. } => *id,
            Sent::Goodbye => None,
        };
        answers.extend(id.map(|id| (id, 0)));
    }
    for (_, heard) in &life.heard {
        let (Heard::Ok { id: Some(id), .. } | Heard::Error { id: Some(id), .. }) = heard else {
            continue;
        };
        let Some(count) = answers.get_mut(id) else { return Err(format!("nobody asked {id}")) };
        *count += 1;
        must!(*count == 1, "request {id} was answered twice");
    }
    let unanswered: Vec<_> = answers.iter().filter(|(_, count)| **count == 0).collect();
    must!(!life.is_alive() || unanswered.is_empty(), "never answered: {unanswered:?}");
    Ok(())
}

/// Welcome first and once; nothing after a close frame but the end.
fn begins_and_ends(life: &Life) -> Verdict {
    for (at, (_, heard)) in life.heard.iter().enumerate() {
        let first = at == 0;
        match heard {
            Heard::Welcome => must!(first, "a second welcome"),
            Heard::End => must!(at + 1 == life.heard.len(), "something after the end"),
            _ => must!(!first, "no welcome"),
        }
        if let Some((_, Heard::Close(_))) = at.checked_sub(1).map(|before| &life.heard[before]) {
            must!(*heard == Heard::End, "something after a close frame");
        }
    }
    Ok(())
}
