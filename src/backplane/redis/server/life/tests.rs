use super::*;
use proptest::prelude::*;

const STAGES: [Stage; 6] = [
    Stage::Pausing,
    Stage::Connecting,
    Stage::Subscribing,
    Stage::Proving,
    Stage::Up,
    Stage::Partial,
];

fn lost() -> LinkError {
    Outage::Timeout("").into()
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(500), 7)
}

/// A life in this stage, on the way that leads there.
fn at(stage: Stage, now: Instant) -> Life {
    let mut life = Life::new(Some("a:1".into()), false, backoff());
    let way = [
        LifeEvent::PauseOver,
        LifeEvent::Linked,
        LifeEvent::Subscribed,
        LifeEvent::Proved,
        LifeEvent::Incomplete,
    ];
    for event in way {
        if life.stage() == stage {
            break;
        }
        life.handle(event, now);
    }
    assert_eq!(life.stage(), stage);
    life
}

fn leaving(now: Instant) -> Life {
    let mut life = at(Stage::Up, now);
    assert_eq!(life.handle(LifeEvent::Named("b:2".into()), now), Action::Hold);
    life
}

fn homeless(now: Instant) -> Life {
    let life = Life::new(None, false, backoff());
    assert_eq!((life.stage(), life.is_switch_late(now)), (Stage::Pausing, false));
    life
}

fn cell(mut life: Life, event: LifeEvent, now: Instant) -> String {
    if !can_happen(life.stage(), &event) {
        return "-".to_owned();
    }
    let before = life.stage();
    let action = life.handle(event, now);
    assert_eq!(life.invariants(), Ok(()));
    if life.stage() != before {
        let entered = match life.stage() {
            Stage::Pausing => matches!(action, Action::Pause(_) | Action::GiveUp(_)),
            Stage::Connecting => action == Action::Connect,
            Stage::Subscribing => action == Action::Subscribe,
            Stage::Proving | Stage::Partial => action == Action::Nothing,
            Stage::Up => matches!(action, Action::GoUp { .. } | Action::Nothing),
        };
        assert!(entered, "{action:?} enters {:?}", life.stage());
        return format!(">{:?}", life.stage()).to_lowercase();
    }
    match action {
        Action::Nothing => ".",
        Action::Pause(_) => "wait",
        Action::Hold => "hold",
        Action::Resume => "resume",
        other => panic!("{other:?} stays in {before:?}"),
    }
    .to_owned()
}

fn table() -> String {
    let now = Instant::now();
    let events: [(&str, LifeEvent); 10] = [
        ("PauseOver", LifeEvent::PauseOver),
        ("Linked", LifeEvent::Linked),
        ("Failed", LifeEvent::Failed(lost())),
        ("Subscribed", LifeEvent::Subscribed),
        ("Proved", LifeEvent::Proved),
        ("Incomplete", LifeEvent::Incomplete),
        ("Complete", LifeEvent::Complete),
        ("Named same", LifeEvent::Named("a:1".into())),
        ("Named other", LifeEvent::Named("c:3".into())),
        ("Drained", LifeEvent::Drained),
    ];
    let names = [
        "no address",
        "pausing",
        "connecting",
        "subscribing",
        "proving",
        "up",
        "partial",
        "leaving",
    ];
    let row = |first: &str, cells: Vec<String>| {
        let cells = cells.iter().map(|cell| format!("{cell:<13}"));
        format!("{first:<12}{}", cells.collect::<String>()).trim_end().to_owned() + "\n"
    };
    let mut text = row("", names.iter().map(|name| (*name).to_owned()).collect());
    for (name, event) in events {
        let lives = std::iter::once(homeless(now))
            .chain(STAGES.into_iter().map(|stage| at(stage, now)))
            .chain([leaving(now)]);
        text += &row(name, lives.map(|life| cell(life, event.clone(), now)).collect());
    }
    text
}

#[test]
fn the_table_of_the_documentation_has_every_cell() {
    let path = "src/backplane/redis/server/life/table.txt";
    let drawn = std::fs::read_to_string(path).unwrap();
    let table = table();
    assert!(drawn == table, "{path} has to be\n{table}");
}

/// A server that is reached or not, and the tasks around a life, on virtual time.
struct Played {
    life: Life,
    now: Instant,
    /// When the pause ends.
    pause_until: Option<Instant>,
    attempts: Vec<(Duration, String)>,
    start: Instant,
    is_held: bool,
}

impl Played {
    fn new(address: Option<&str>) -> Played {
        let now = Instant::now();
        Played {
            life: Life::new(address.map(str::to_owned), false, backoff()),
            now,
            pause_until: Some(now),
            attempts: Vec::new(),
            start: now,
            is_held: false,
        }
    }

    fn event(&mut self, event: LifeEvent) {
        match self.life.handle(event, self.now) {
            Action::Nothing | Action::Subscribe | Action::GoUp { .. } => {}
            Action::Pause(pause) => self.pause_until = Some(self.now + pause),
            Action::GiveUp(pause) => {
                self.pause_until = Some(self.now + pause);
                self.is_held = false;
            }
            Action::Connect => {
                let address = self.life.address().expect("it connects somewhere").to_owned();
                self.attempts.push((self.now - self.start, address));
                self.pause_until = None;
            }
            Action::Hold => self.is_held = true,
            Action::Resume => self.is_held = false,
        }
        assert_eq!(self.life.invariants(), Ok(()));
        assert_eq!(self.pause_until.is_some(), self.life.stage() == Stage::Pausing);
        assert!(!self.life.is_leaving() || self.is_held, "who leaves sends nothing new");
    }

    /// One step of the world, in which this address answers.
    fn step(&mut self, answers: Option<&str>) {
        let is_there = self.life.address() == answers && answers.is_some();
        match self.life.stage() {
            Stage::Pausing => {
                self.now = self.now.max(self.pause_until.expect("it pauses"));
                self.event(LifeEvent::PauseOver);
            }
            _ if self.life.is_leaving() => {
                self.now += SWITCH_GRACE;
                assert!(self.life.is_switch_late(self.now));
                self.event(LifeEvent::Drained);
            }
            Stage::Connecting if is_there => self.event(LifeEvent::Linked),
            Stage::Subscribing if is_there => self.event(LifeEvent::Subscribed),
            Stage::Proving if is_there => self.event(LifeEvent::Proved),
            Stage::Partial if is_there => self.event(LifeEvent::Complete),
            Stage::Up if is_there => self.now += Duration::from_millis(10),
            _ => {
                self.now += Duration::from_millis(1);
                self.event(LifeEvent::Failed(lost()));
            }
        }
    }
}

#[test]
fn pauses_grow_while_nothing_answers_and_end_at_once_where_the_master_is_named() {
    let mut played = Played::new(Some("a:1"));
    while played.now - played.start < Duration::from_secs(60) {
        played.step(None);
    }
    let gaps: Vec<Duration> =
        played.attempts.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps[0] <= Duration::from_millis(51) && gaps.len() < 300, "{}", gaps.len());
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_millis(501)));
    assert!(*gaps.last().unwrap() >= Duration::from_millis(250));
    let attempts = played.attempts.len();
    played.event(LifeEvent::Named("b:2".into()));
    let named = played.now - played.start;
    while !played.life.is_up() {
        played.step(Some("b:2"));
    }
    assert_eq!(played.attempts[attempts..], [(named, "b:2".to_owned())]);
}

#[test]
fn a_master_that_moves_is_left_when_nothing_is_in_flight_and_nothing_new_is_sent_until_then() {
    let mut played = Played::new(Some("a:1"));
    while !played.life.is_up() {
        played.step(Some("a:1"));
    }
    played.event(LifeEvent::Named("b:2".into()));
    assert!(played.is_held && played.life.is_up() && played.life.is_elsewhere("c:3"));
    assert!(!played.life.is_switch_late(played.now));
    played.event(LifeEvent::Named("a:1".into()));
    assert!(!played.is_held && !played.life.is_leaving(), "it has changed its mind");
    played.event(LifeEvent::Named("b:2".into()));
    played.event(LifeEvent::Drained);
    assert_eq!(played.life.failure(), Some(&Outage::MovedTo("b:2".into()).into()));
    assert_eq!(played.pause_until, Some(played.now), "at once");
}

#[test]
fn members_are_notified_by_each_link_but_the_first() {
    let mut life = at(Stage::Proving, Instant::now());
    let now = Instant::now();
    assert_eq!(life.handle(LifeEvent::Proved, now), Action::GoUp { notify: false });
    life.handle(LifeEvent::Failed(lost()), now);
    for event in [LifeEvent::PauseOver, LifeEvent::Linked, LifeEvent::Subscribed] {
        life.handle(event, now);
    }
    assert_eq!(life.handle(LifeEvent::Proved, now), Action::GoUp { notify: true });
    assert_eq!(life.failure(), None);
}

proptest! {
    #[test]
    fn whatever_happens_a_server_that_answers_is_up_soon(
        steps in proptest::collection::vec((0u8..6, 0u8..3), 0..60),
    ) {
        let addresses = ["a:1", "b:2", "c:3"];
        let mut played = Played::new(None);
        for (what, which) in steps {
            let address = addresses[usize::from(which)];
            match what {
                0 => played.event(LifeEvent::Named(address.to_owned())),
                1 => played.event(LifeEvent::Failed(lost())),
                2 if played.life.is_live() => played.event(LifeEvent::Incomplete),
                3 if played.life.is_live() => played.event(LifeEvent::Drained),
                4 => played.step(None),
                _ => played.step(Some(address)),
            }
        }
        played.event(LifeEvent::Named("b:2".into()));
        let begun = played.now;
        for _ in 0..20 {
            played.step(Some("b:2"));
        }
        prop_assert_eq!(played.life.stage(), Stage::Up);
        prop_assert!(played.now - begun < Duration::from_secs(2));
    }
}
