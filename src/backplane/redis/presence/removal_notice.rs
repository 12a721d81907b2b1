//! The notice that other nodes have removed this one's entries.
//!
//! A notice has a new value each time, and is not removed when it is read: the reply may be lost. It
//! is acted on after some reads: for the others this node is dead until they have read again, and a
//! member who receives a join must find the user in the roster.

/// Reads in a row that must find a notice.
const READS: u32 = 3;

/// The last notice found. Outlives links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum RemovalNotice {
    /// The last read found none.
    #[default]
    None,
    /// Found in so many reads in a row, and not acted on.
    Fresh { notice: Vec<u8>, reads: u32 },
    /// Acted on: the entries are written again.
    ActedOn { notice: Vec<u8> },
}

/// What a read finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoticeEvent {
    /// No notice.
    Absent,
    /// The notice of the read before.
    Same,
    /// Another one.
    Other,
}

impl RemovalNotice {
    /// Takes the notice of a read. Returns whether it has to be acted on now.
    pub(super) fn take(&mut self, found: Option<Vec<u8>>) -> bool {
        let event = match (&*self, &found) {
            (_, None) => NoticeEvent::Absent,
            (RemovalNotice::Fresh { notice, .. } | RemovalNotice::ActedOn { notice }, Some(it))
                if notice == it =>
            {
                NoticeEvent::Same
            }
            (_, Some(_)) => NoticeEvent::Other,
        };
        let before = std::mem::take(self);
        let was_acted_on = matches!(before, RemovalNotice::ActedOn { .. });
        *self = before.after(event, found.unwrap_or_default()).expect("the event suits the state");
        !was_acted_on && matches!(self, RemovalNotice::ActedOn { .. })
    }

    /// Whether a notice waits to be acted on.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self, RemovalNotice::Fresh { .. })
    }

    /// The state after an event. `None`: it cannot happen in this state.
    pub(super) fn after(self, event: NoticeEvent, found: Vec<u8>) -> Option<RemovalNotice> {
        Some(match (self, event) {
            (_, NoticeEvent::Absent) => RemovalNotice::None,
            (_, NoticeEvent::Other) => RemovalNotice::Fresh { notice: found, reads: 1 },
            (RemovalNotice::None, NoticeEvent::Same) => return None,
            (RemovalNotice::Fresh { notice, reads }, NoticeEvent::Same) => match reads + 1 {
                READS => RemovalNotice::ActedOn { notice },
                reads => RemovalNotice::Fresh { notice, reads },
            },
            (RemovalNotice::ActedOn { notice }, NoticeEvent::Same) => {
                RemovalNotice::ActedOn { notice }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_notice_is_acted_on_once_and_not_at_once() {
        let mut removal_notice = RemovalNotice::default();
        let mut due = |notice: Option<u8>, looks| {
            let notice = notice.map(|notice| vec![notice]);
            (0..looks).map(|_| removal_notice.take(notice.clone())).collect::<Vec<_>>()
        };
        assert_eq!(due(None, 4), [false; 4]);
        assert_eq!(due(Some(1), 5), [false, false, true, false, false]);
        assert_eq!(due(Some(2), 2), [false; 2]);
        assert_eq!(due(Some(3), 4), [false, false, true, false]);
        assert_eq!(due(None, 1), [false]);
        assert_eq!(due(Some(3), 3), [false, false, true]);
    }
}
