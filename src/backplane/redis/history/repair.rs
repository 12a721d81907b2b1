//! Repair: a server that has lost the end of a history gets it back from the nodes.
//!
//! The first node that offers it appends what it has; the script takes only what is missing, and
//! nothing once the server has stored new messages (`lua/repair.lua`).

use crate::backplane::envelope;
use crate::backplane::message::IDEMPOTENCY_TTL;
use crate::backplane::redis::history::follower::Repair;
use crate::backplane::redis::history::histories::Histories;
use crate::backplane::redis::history::reply::FetchedHistory;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::scripts::{self, HistoryScript};
use crate::ids::TopicName;
use redis::Cmd;

impl Histories {
    /// Whether this node has more of a topic than the server, and may repair it. Once until it has
    /// everything of it: a second attempt would not help.
    pub(super) fn may_repair(&mut self, name: &TopicName, read: Option<&FetchedHistory>) -> bool {
        let Some(topic) = self.topics.get_mut(name) else { return false };
        let (Some(log), Some(sent)) = (topic.log(), topic.state().read().in_flight()) else {
            return false;
        };
        let known = log.position();
        let is_behind = match read {
            None => true,
            // The server knows what arrived after the read was sent.
            Some(read) if read.epoch == known.epoch => {
                read.top < known.offset && read.top.saturating_add(1) < sent.next
            }
            // Or the server has only an ancestor of this history.
            Some(read) => topic.lineage.end_of(read.epoch).is_some_and(|end| read.top <= end),
        };
        if log.is_empty() || !is_behind || topic.repair != Repair::Untried {
            return false;
        }
        let next = read.map_or(0, |read| read.top.saturating_add(1));
        topic.repair = Repair::Tried(next.max(log.first()));
        true
    }

    /// The command that puts back what the server has lost of a topic, as [`Self::may_repair`] has
    /// decided.
    pub(super) fn repair_command(&self, name: &TopicName, names: &Names, generation: &str) -> Cmd {
        let topic = self.topics.get(name).expect("it was just looked at");
        let log = topic.log().expect("a node that offers a repair has messages");
        let keys = names.history_keys(name.as_str());
        let of_retry = |key: &str| format!("{}:{key}", keys.retry);
        let Repair::Tried(from) = topic.repair else { panic!("no repair was begun") };
        let first = from.max(log.first());
        let skipped = first.saturating_sub(log.first()) as usize;
        let repaired = || log.bodies().skip(skipped);
        let key_of = |body| envelope::read(name.as_str(), body).ok().and_then(|it| it.key);
        let retries: Vec<String> =
            repaired().filter_map(|body| key_of(body).map(of_retry)).collect();
        let mut all = vec![&keys.meta[..], &keys.stream];
        all.extend(retries.iter().map(|key| &key[..]));
        let mut repair = scripts::call(HistoryScript::Repair, &all);
        repair.arg(log.position().epoch).arg(first).arg(generation);
        repair.arg(names.channel(name.as_str())).arg(names.publish());
        let ttl_s = self.policy(name).history_ttl_s;
        repair
            .arg(ttl_s)
            .arg(scripts::meta_ttl_s(self.policy(name)))
            .arg(IDEMPOTENCY_TTL.as_secs());
        repair.arg(topic.lineage.to_string());
        repair.arg(topic.acked.map_or(String::new(), |acked| acked.to_string()));
        let mut number = 2;
        for body in repaired() {
            let has_key = key_of(body).is_some();
            number += usize::from(has_key);
            repair.arg(&body[..]).arg(if has_key { number } else { 0 });
        }
        repair
    }
}
