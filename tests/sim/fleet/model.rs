//! The formulas of the capacity model, as they stand in `benches/README.md`.

/// Nodes with at least one of `members` members, when a balancer spreads them by chance.
pub fn nodes_with_a_member(nodes: f64, members: f64) -> f64 {
    nodes * (1.0 - empty(nodes, members))
}

/// The chance that a node has none of them.
fn empty(nodes: f64, members: f64) -> f64 {
    (1.0 - 1.0 / nodes).powf(members)
}

/// Its variance, at most: nodes are negatively associated (one more here is one fewer elsewhere), so
/// it is not above that of independent ones.
pub fn variance(nodes: f64, members: f64) -> f64 {
    let empty = empty(nodes, members);
    nodes * empty * (1.0 - empty)
}

/// Subscriptions a second, and as many unsubscriptions, that one node causes for one room: members
/// come at `members / nodes / stay_s` a second; one in `e^(members/nodes)` finds the room empty here,
/// and one in `e^(rate × linger)` of these comes after the linger.
pub fn subscriptions_per_s(nodes: f64, members: f64, stay_s: f64, linger_s: f64) -> f64 {
    let here = members / nodes;
    let rate = here / stay_s;
    rate * (-here).exp() * (-rate * linger_s).exp()
}
