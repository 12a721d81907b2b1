//! What was said, in the order in which Redis carried it out, and who heard it.
//!
//! The judge knows nothing of nodes or shards but where Redis sent a message, and whether the way
//! there was broken. A message that a member did not hear must have been told as lost, or must have
//! been said while its node was cut off (which is logged, not told: there is no history yet).

use std::collections::HashMap;

/// A set of nodes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Nodes([u64; 4]);

impl Nodes {
    pub fn add(&mut self, node: usize) {
        self.0[node / 64] |= 1 << (node % 64);
    }

    pub fn remove(&mut self, node: usize) {
        self.0[node / 64] &= !(1 << (node % 64));
    }

    pub fn has(&self, node: usize) -> bool {
        self.0[node / 64] >> (node % 64) & 1 == 1
    }
}

/// One message. Its number is its place in the ledger.
struct Said {
    /// Which connection said it.
    by: usize,
    echo: bool,
    /// When its topic's turn came: the number-th in that topic's log.
    place: Option<u32>,
    /// Where Redis sent it.
    reached: Nodes,
    /// Where it could not, or where it was lost with the connection.
    cut_off: Nodes,
}

/// One client's ear at one topic.
#[derive(Clone, Debug, Default)]
pub struct Ear {
    /// The last place heard.
    last: Option<u32>,
    /// From this place on everything is owed to it; `None`: nothing is.
    owed_from: Option<u32>,
    /// Owed, sent to its node, and not heard.
    missed: u64,
    /// Losses it was told of.
    pub told: u64,
    /// Owed, and said while its node was cut off.
    pub cut_off: u64,
    pub heard: u64,
}

impl Ear {
    /// It asked to leave: nothing is owed any more, but the order.
    pub fn leave(&mut self) {
        self.owed_from = None;
    }
}

#[derive(Default)]
pub struct Ledger {
    said: Vec<Said>,
    logs: HashMap<String, Vec<usize>>,
}

impl Ledger {
    /// A connection says something; answers its number.
    pub fn say(&mut self, by: usize, echo: bool) -> usize {
        let (reached, cut_off) = (Nodes::default(), Nodes::default());
        self.said.push(Said { by, echo, place: None, reached, cut_off });
        self.said.len() - 1
    }

    /// Redis carries it out.
    pub fn carry_out(&mut self, number: usize, topic: &str, reached: Nodes, cut_off: Nodes) {
        let log = self.logs.entry(topic.to_owned()).or_default();
        let said = &mut self.said[number];
        assert_eq!(said.place, None, "{number} was carried out twice");
        said.place = Some(log.len() as u32);
        (said.reached, said.cut_off) = (reached, cut_off);
        log.push(number);
    }

    /// On its way to a node, and lost with the connection.
    pub fn lose(&mut self, number: usize, node: usize) {
        self.said[number].reached.remove(node);
        self.said[number].cut_off.add(node);
    }

    pub fn len(&self, topic: &str) -> u32 {
        self.logs.get(topic).map_or(0, |log| log.len() as u32)
    }

    /// From now on everything is owed to this ear.
    pub fn owe(&self, ear: &mut Ear, topic: &str) {
        ear.owed_from.get_or_insert(self.len(topic));
    }

    pub fn hear(&self, ear: &mut Ear, who: usize, node: usize, topic: &str, number: usize) {
        let said = &self.said[number];
        let place = said.place.expect("nothing is heard before it was said");
        assert_eq!(self.logs[topic][place as usize], number, "{who} heard it under another name");
        assert!(ear.last < Some(place), "{who} heard {number} of {topic} twice or out of order");
        assert!(said.echo || said.by != who, "{who} heard its own {number} in spite of echo");
        self.look_back(ear, who, node, topic, place);
        ear.last = Some(place);
        ear.heard += 1;
    }

    /// What was owed since the last place heard, and not heard.
    fn look_back(&self, ear: &mut Ear, who: usize, node: usize, topic: &str, place: u32) {
        let Some(owed_from) = ear.owed_from else { return };
        let from = ear.last.map_or(0, |last| last + 1).max(owed_from);
        for number in (from..place).map(|place| self.logs[topic][place as usize]) {
            let said = &self.said[number];
            if !said.echo && said.by == who {
                continue;
            }
            if said.reached.has(node) {
                ear.missed += 1;
            } else {
                assert!(
                    said.cut_off.has(node),
                    "nobody listened on {node} for {number} of {topic}"
                );
                ear.cut_off += 1;
            }
        }
    }

    /// At rest: everything owed was heard, told as lost, or said while the node was cut off.
    pub fn judge(&self, ear: &mut Ear, who: usize, node: usize, topic: &str) {
        let end = self.len(topic);
        self.look_back(ear, who, node, topic, end);
        ear.last = end.checked_sub(1).max(ear.last);
        let Ear { missed, told, .. } = *ear;
        assert!(told >= missed, "{who} in {topic} missed {missed} and was told of {told}");
    }
}
