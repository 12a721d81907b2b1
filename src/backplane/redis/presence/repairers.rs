//! The other nodes that may have what a server has lost.
//!
//! The records of nodes are lost with the server, so a node remembers whom it has seen. It is in no
//! hurry to forget: the records of nodes that live are also missing while those nodes connect to a
//! server that came back empty, and another fault may come then.
//!
//! Invariant: a node is forgotten after as many reads as [`MISSED_MAX`] says that did not find its
//! record; while the server of the records is down, none is.

use crate::backplane::redis::presence::records::{NodeRecord, Repairs};
use hashbrown::HashMap;
use std::fmt;

/// Reads in a row without its record after which a node counts as gone. One each second.
const MISSED_MAX: u8 = 5;

struct Repairer {
    reports: bool,
    missed: u8,
}

/// See the module. Shown as `lua/report.lua` takes it.
#[derive(Default)]
pub(super) struct Repairers {
    nodes: HashMap<String, Repairer>,
}

impl Repairers {
    /// Takes the nodes of a read, and their records.
    pub(super) fn take_read(&mut self, read: &[(String, Option<NodeRecord>)]) {
        self.nodes.values_mut().for_each(|node| node.missed += 1);
        for (name, record) in read {
            let reports = match record.map(|record| record.repairs) {
                Some(Repairs::Reported) => true,
                Some(Repairs::Unknown) => false,
                Some(Repairs::Nothing) | None => continue,
            };
            self.nodes.insert(name.clone(), Repairer { reports, missed: 0 });
        }
        self.nodes.retain(|_, node| node.missed < MISSED_MAX);
    }
}

impl fmt::Display for Repairers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut blank = "";
        for (name, node) in &self.nodes {
            write!(f, "{blank}{name}={}", if node.reports { '0' } else { 'o' })?;
            blank = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::wire::WireRange;

    fn read(repairers: &mut Repairers, nodes: &[(&str, Option<Repairs>)]) -> String {
        let record = |repairs| NodeRecord { reads: WireRange::FIRST, repairs };
        let nodes = nodes.iter().map(|(name, repairs)| ((*name).to_owned(), repairs.map(record)));
        repairers.take_read(&nodes.collect::<Vec<_>>());
        let text = repairers.to_string();
        let mut words: Vec<_> = text.split_whitespace().collect();
        words.sort_unstable();
        words.join(" ")
    }

    #[test]
    fn a_node_is_remembered_until_its_record_was_missing_for_long() {
        let mut repairers = Repairers::default();
        let [reports, unknown, nothing] =
            [Repairs::Reported, Repairs::Unknown, Repairs::Nothing].map(Some);
        assert_eq!(read(&mut repairers, &[("a", reports), ("b", unknown)]), "a=0 b=o");
        assert_eq!(read(&mut repairers, &[("c", None), ("d", nothing)]), "a=0 b=o");
        for _ in 0..MISSED_MAX - 2 {
            assert_eq!(read(&mut repairers, &[("b", reports)]), "a=0 b=0");
        }
        assert_eq!(read(&mut repairers, &[("b", None)]), "b=0", "a is gone");
    }
}
