//! The life of a server as a state machine: what follows from each event in each stage.
//!
//! It decides and does nothing: no socket, no clock, no task. What has to be done is returned as an
//! [`Action`]; who does it reports what happened as the next [`LifeEvent`]. So it runs in a test on
//! virtual time, and every cell of its table is checked:
//!
//! ```text
#![doc = include_str!("table.txt")]
//! ```
//!
//! `>stage` enters a stage: `>pausing` gives up what there is and waits, `>connecting` opens the
//! connections, `>subscribing` subscribes everything wanted, `>up` reports that messages flow.
//! `hold` stops sending commands of topics, `resume` goes on with them, `wait` begins the pause
//! again, `.` changes nothing, and `-` cannot happen. *Leaving* is a server that is up while its
//! master is known to be elsewhere; the stages before it leave in the same way.
//!
//! Invariant: [`Life::invariants`].

#[cfg(test)]
mod tests;

use crate::backplane::redis::backoff::Backoff;
use crate::backplane::redis::failure::{LinkError, Outage};
use std::time::{Duration, Instant};

/// How long commands in flight may take before the server is left for its successor.
pub(in crate::backplane::redis) const SWITCH_GRACE: Duration = Duration::from_millis(300);

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backplane::redis) enum Stage {
    /// Waits for the next attempt.
    Pausing,
    /// Opens the connections.
    Connecting,
    /// Is linked, and subscribes everything wanted.
    Subscribing,
    /// Everything is subscribed; waits for the first canary.
    Proving,
    /// Messages flow.
    Up,
    /// Messages flow, but some topics are subscribed on no server.
    Partial,
}

/// What happened.
#[derive(Clone, Debug)]
pub(in crate::backplane::redis) enum LifeEvent {
    /// The pause is over.
    PauseOver,
    /// The connections are open.
    Linked,
    /// An attempt, or a link, has failed.
    Failed(LinkError),
    /// Everything that was wanted when the link began is subscribed.
    Subscribed,
    /// A canary came back, or there is nothing to prove.
    Proved,
    /// Some topics have been subscribed on no server for too long.
    Incomplete,
    /// There are none of those.
    Complete,
    /// The topology names the server's address.
    Named(String),
    /// Nothing is in flight, or it has taken too long.
    Drained,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::backplane::redis) enum Action {
    /// Nothing.
    Nothing,
    /// Wait for so long; an attempt under way is dropped.
    Pause(Duration),
    /// Drop all connections, and wait for so long.
    GiveUp(Duration),
    /// Open the connections.
    Connect,
    /// Subscribe everything wanted.
    Subscribe,
    /// Messages flow; whether members may have missed some.
    GoUp {
        /// Members of an earlier link are to be notified.
        notify: bool,
    },
    /// Send no commands of topics.
    Hold,
    /// Send them again.
    Resume,
}

/// The state of one server.
pub(in crate::backplane::redis) struct Life {
    stage: Stage,
    /// `host:port`; `None`: not known yet.
    address: Option<String>,
    /// The address to switch to, and since when it is known.
    successor: Option<(String, Instant)>,
    backoff: Backoff,
    /// Why it is not ready; `None`: it is, or nothing was tried yet.
    failure: Option<LinkError>,
    /// Members have been notified that a topic is subscribed here, or on the server that had it
    /// before: losses have to be reported.
    had_members: bool,
}

impl Life {
    /// Nothing was tried yet. `had_members`: its topics were on another server before.
    pub(in crate::backplane::redis) fn new(
        address: Option<String>,
        had_members: bool,
        backoff: Backoff,
    ) -> Life {
        let (stage, successor, failure) = (Stage::Pausing, None, None);
        Life { stage, address, successor, backoff, failure, had_members }
    }

    /// Where it is.
    pub(in crate::backplane::redis) fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether messages flow.
    pub(in crate::backplane::redis) fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Up | Stage::Partial)
    }

    /// Whether there are connections.
    pub(in crate::backplane::redis) fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Pausing | Stage::Connecting)
    }

    /// Its address.
    pub(in crate::backplane::redis) fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Why it is not ready.
    pub(in crate::backplane::redis) fn failure(&self) -> Option<&LinkError> {
        self.failure.as_ref()
    }

    /// Whether losses have to be reported after the next link.
    pub(in crate::backplane::redis) fn has_had_members(&self) -> bool {
        self.had_members
    }

    /// Members have been notified of a subscription.
    pub(in crate::backplane::redis) fn note_members(&mut self) {
        self.had_members = true;
    }

    /// Whether it is known to be at another address.
    pub(in crate::backplane::redis) fn is_elsewhere(&self, address: &str) -> bool {
        let successor = self.successor.as_ref().map(|(successor, _)| successor);
        successor.or(self.address.as_ref()).is_some_and(|known| known != address)
    }

    /// Whether commands in flight have taken too long for its successor to wait.
    pub(in crate::backplane::redis) fn is_switch_late(&self, now: Instant) -> bool {
        let since = self.successor.as_ref().map(|(_, since)| *since);
        since.is_some_and(|since| now.duration_since(since) >= SWITCH_GRACE)
    }

    /// Whether it is to be left for its successor.
    pub(in crate::backplane::redis) fn is_leaving(&self) -> bool {
        self.successor.is_some()
    }

    /// Takes an event. Returns what has to be done.
    pub(in crate::backplane::redis) fn handle(&mut self, event: LifeEvent, now: Instant) -> Action {
        debug_assert!(can_happen(self.stage, &event), "{event:?} while {:?}", self.stage);
        let action = match event {
            LifeEvent::PauseOver => self.end_pause(),
            LifeEvent::Linked => self.enter(Stage::Subscribing, Action::Subscribe),
            LifeEvent::Failed(error) => self.fail(error),
            LifeEvent::Subscribed => self.enter(Stage::Proving, Action::Nothing),
            LifeEvent::Proved => self.go_up(),
            LifeEvent::Incomplete => self.set_partial(true),
            LifeEvent::Complete => self.set_partial(false),
            LifeEvent::Named(address) => self.name(address, now),
            LifeEvent::Drained => self.leave(),
        };
        debug_assert_eq!(self.invariants(), Ok(()));
        action
    }

    fn enter(&mut self, stage: Stage, action: Action) -> Action {
        self.stage = stage;
        action
    }

    fn end_pause(&mut self) -> Action {
        if self.address.is_some() {
            return self.enter(Stage::Connecting, Action::Connect);
        }
        self.failure = Some(Outage::NoAddress.into());
        Action::Pause(self.backoff.next())
    }

    fn go_up(&mut self) -> Action {
        self.failure = None;
        self.backoff.reset();
        let notify = std::mem::replace(&mut self.had_members, true);
        self.enter(Stage::Up, Action::GoUp { notify })
    }

    fn set_partial(&mut self, is_partial: bool) -> Action {
        if self.is_up() {
            self.failure = is_partial.then(|| Outage::Unserved.into());
            self.stage = if is_partial { Stage::Partial } else { Stage::Up };
        }
        Action::Nothing
    }

    /// The only way down, whatever failed.
    fn fail(&mut self, error: LinkError) -> Action {
        let was_live = self.is_live();
        self.failure = Some(error);
        self.stage = Stage::Pausing;
        let pause = match self.successor.take() {
            Some((address, _)) => self.follow(address),
            None => self.backoff.next(),
        };
        if was_live { Action::GiveUp(pause) } else { Action::Pause(pause) }
    }

    fn name(&mut self, address: String, now: Instant) -> Action {
        if self.address.as_ref() == Some(&address) {
            self.successor = None;
            return Action::Resume;
        }
        if self.is_live() {
            self.successor = Some((address, now));
            return Action::Hold;
        }
        self.stage = Stage::Pausing;
        Action::Pause(self.follow(address))
    }

    fn leave(&mut self) -> Action {
        match &self.successor {
            Some((address, _)) => self.fail(Outage::MovedTo(address.clone()).into()),
            None => Action::Nothing,
        }
    }

    /// Goes to another address at once.
    fn follow(&mut self, address: String) -> Duration {
        self.address = Some(address);
        self.backoff.reset();
        Duration::ZERO
    }

    /// What always holds; `Err`: what does not.
    pub(in crate::backplane::redis) fn invariants(&self) -> Result<(), &'static str> {
        let successor = self.successor.as_ref().map(|(address, _)| address);
        let is_unserved = self.failure == Some(Outage::Unserved.into());
        for (holds, what) in [
            (self.stage == Stage::Pausing || self.address.is_some(), "it is reached by an address"),
            (successor.is_none() || self.is_live(), "only a link is left for a successor"),
            (successor.is_none() || successor != self.address.as_ref(), "a successor is elsewhere"),
            (self.stage != Stage::Up || self.failure.is_none(), "what is up has not failed"),
            ((self.stage == Stage::Partial) == is_unserved, "a part is missing while it says so"),
            (!self.is_up() || self.had_members, "who was up has had members"),
        ] {
            if !holds {
                return Err(what);
            }
        }
        Ok(())
    }
}

/// Whether an event can happen in a stage: nobody opens connections that are open, and only a link
/// subscribes.
fn can_happen(stage: Stage, event: &LifeEvent) -> bool {
    match event {
        LifeEvent::PauseOver => stage == Stage::Pausing,
        LifeEvent::Linked => stage == Stage::Connecting,
        LifeEvent::Subscribed => stage == Stage::Subscribing,
        LifeEvent::Proved => stage == Stage::Proving,
        LifeEvent::Incomplete | LifeEvent::Complete | LifeEvent::Drained => {
            !matches!(stage, Stage::Pausing | Stage::Connecting)
        }
        LifeEvent::Failed(_) | LifeEvent::Named(_) => true,
    }
}
