//! Load: numbered messages to one room, over several nodes in turns, each acknowledged before the
//! next.

use crate::client::Client;
use crate::node::Node;
use crate::redis::wait_until;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

pub struct Publisher {
    /// Messages that are acknowledged.
    published: Arc<AtomicU64>,
    nodes: Option<Sender<Vec<SocketAddr>>>,
    /// The publisher uses the nodes it was given last.
    uses: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Publisher {
    /// Publishes 1, 2, … to a room until it is stopped.
    pub fn start(room: &'static str, nodes: &[&Node]) -> Publisher {
        let (nodes_to, nodes_from) = channel();
        let (uses_to, uses) = channel();
        let published = Arc::new(AtomicU64::new(0));
        let count = published.clone();
        let thread = std::thread::spawn(move || run(room, &count, &nodes_from, &uses_to));
        let publisher = Publisher { published, nodes: Some(nodes_to), uses, thread };
        publisher.publish_over(nodes);
        publisher
    }

    /// Publishes over these nodes from now on: nothing is on its way over another one when this
    /// returns.
    pub fn publish_over(&self, nodes: &[&Node]) {
        let nodes = nodes.iter().map(|node| node.addr).collect();
        self.nodes.as_ref().expect("it runs").send(nodes).expect("it runs");
        self.uses.recv().expect("it runs");
    }

    /// Number of acknowledged messages.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    pub fn wait_for_more(&self, count: u64) {
        let target = self.published() + count;
        wait_until("more is published", || self.published() >= target);
    }

    /// Ends it. Returns the number of messages.
    pub fn stop(mut self) -> u64 {
        self.nodes = None;
        self.thread.join().expect("everything was acknowledged");
        self.published.load(Ordering::SeqCst)
    }
}

fn run(room: &str, count: &AtomicU64, nodes: &Receiver<Vec<SocketAddr>>, uses: &Sender<()>) {
    let mut clients: Vec<(SocketAddr, Client)> = Vec::new();
    let mut current = nodes.recv().expect("it is given nodes first");
    loop {
        clients.retain(|(addr, _)| current.contains(addr));
        for addr in &current {
            if !clients.iter().any(|(known, _)| known == addr) {
                clients.push((*addr, Client::join(*addr, &[])));
            }
        }
        let _ = uses.send(());
        current = loop {
            match nodes.try_recv() {
                Ok(next) => break next,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                Err(std::sync::mpsc::TryRecvError::Empty) => {}
            }
            let number = count.load(Ordering::SeqCst) + 1;
            let at = number as usize % clients.len();
            let client = &mut clients[at].1;
            client.say(
                json!({"type":"publish","room_id":room,"payload":number,"id":number}).to_string(),
            );
            let reply = client.hear();
            assert_eq!((&reply["type"], &reply["id"]), (&json!("ok"), &json!(number)), "{reply}");
            count.store(number, Ordering::SeqCst);
        };
    }
}
