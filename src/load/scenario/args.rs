//! The command line of `campanile load`, and the checks that need only the arguments themselves.
//!
//! Invariant: a wrong argument is refused before the first connect, with what to write instead.

use crate::load::client::rooms::RoomAssignment;
use crate::load::error::LoadError;
use crate::load::run::publish::PublishPace;
use clap::{Args, Subcommand};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// `{n}` in a help text. clap turns these three characters into a line break, so an escape sequence
/// that changes nothing separates them: terminals do not show it, and clap removes it elsewhere.
const NUMBER_PLACEHOLDER: &str = "{\u{1b}[0mn}";

/// A timeout in seconds: at most a year, so that its sum with the clock does not overflow.
fn timeout_seconds() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(0..=31_536_000)
}

/// Put load on this or any other WebSocket server, and measure what it does
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// What is measured.
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// What is measured. The text of a variant is its help.
#[derive(Subcommand, Clone, Debug)]
pub enum Scenario {
    /// Hold many connections: do they all join, how fast, and what does each cost?
    Idle(IdleArgs),
    /// Publish to rooms: how many deliveries, how late, and at what cost?
    Fanout(FanoutArgs),
    /// Publish messages that nobody receives: what does an incoming message cost?
    #[command(alias = "talk")]
    Ingest(IngestArgs),
    /// Cut all connections at once: how long until all have joined again, and what do others
    /// notice?
    Storm(StormArgs),
}

/// The flags of all scenarios.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Where to connect; given several times, connections are spread over all of them
    #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
    pub url: Vec<String>,
    /// Request path, with {room}, {room_ids}, {token} and {n}; by default the URL's own, with
    /// ?{room_ids} unless there is an --init or an --answer
    #[arg(
        long,
        value_name = "TEMPLATE",
        help = format!(
            "Request path, with {{room}}, {{room_ids}}, {{token}} and {NUMBER_PLACEHOLDER}; by default the \
             URL's own, with ?{{room_ids}} unless there is an --init or an --answer"
        )
    )]
    pub path: Option<String>,
    /// Request header `Name: value`, repeatable (Authorization, Origin, Sec-WebSocket-Protocol…)
    #[arg(long, value_name = "HEADER")]
    pub header: Vec<String>,
    /// Message sent once a connection is open, with {room} and {n}; repeatable
    #[arg(
        long,
        value_name = "TEMPLATE",
        help = format!(
            "Message sent once a connection is open, with {{room}} and {NUMBER_PLACEHOLDER}; repeatable"
        )
    )]
    pub init: Vec<String>,
    /// 'BEGINNING=MESSAGE', repeatable: replies with MESSAGE to a frame that begins with BEGINNING;
    /// for servers that send the first message. In MESSAGE: {room}, {n}, {field:NAME} (the value of
    /// NAME in that frame) and {signature}. Engine.io's pings: '2=3'
    #[arg(
        long,
        value_name = "RULE",
        help = format!(
            "'BEGINNING=MESSAGE', repeatable: replies with MESSAGE to a frame that begins with \
             BEGINNING; for servers that send the first message. In MESSAGE: {{room}}, \
             {NUMBER_PLACEHOLDER}, {{field:NAME}} (the value of NAME in that frame) and \
             {{signature}}. Engine.io's pings: '2=3'"
        )
    )]
    pub answer: Vec<String>,
    /// 'KEY=TEXT': {signature} in an --answer is the HMAC-SHA256 of TEXT under KEY, in hex.
    /// Pusher's private channels: 'secret={field:socket_id}:private-{room}'
    #[arg(long, value_name = "RULE")]
    pub sign: Option<String>,
    /// The server does not send a message back to the connection that published it
    #[arg(long)]
    pub no_echo: bool,
    /// Text in the frame that confirms a join; empty for servers that send no confirmation
    #[arg(long, value_name = "TEXT", default_value = r#""type":"ok""#)]
    pub ready: String,
    /// Beginning of room names; the room's number follows
    #[arg(long, default_value = "load-")]
    pub room_prefix: String,
    /// Signs {token}, a JSON Web Token (HS256)
    #[arg(long, value_name = "SECRET")]
    pub token_secret: Option<String>,
    /// The claims of {token}, with {room} and {n}; by default a user with the name of the room, until
    /// the year 2100
    #[arg(
        long,
        value_name = "TEMPLATE",
        default_value = r#"{"sub":"{room}","exp":4102444800}"#,
        hide_default_value = true,
        help = format!(
            "The claims of {{token}}, with {{room}} and {NUMBER_PLACEHOLDER}; by default a user with \
             the name of the room, until the year 2100"
        )
    )]
    pub token_claims: String,
    /// Source address, repeatable; by default many of 127.0.0.0/8 for a loopback server, else the
    /// kernel's choice
    #[arg(long, value_name = "ADDRESS")]
    pub source: Vec<IpAddr>,
    /// Threads; more are started if one would need more descriptors than the host allows
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Cores to pin the threads to, in turn: 1 or 2-5,7
    #[arg(long, value_name = "CORES")]
    pub cores: Option<String>,
    /// Handshakes outstanding per thread
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub connect_concurrency: u32,
    /// Connects a second, over all threads
    #[arg(long, value_name = "PER_SECOND")]
    pub connect_rate: Option<f64>,
    /// Seconds from a connect to the join
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = timeout_seconds())]
    pub handshake_timeout_s: u64,
    /// Attempts after the first one (a storm has no limit)
    #[arg(long, default_value_t = 5)]
    pub retries: u8,
    /// Seconds after which the run ends
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = timeout_seconds())]
    pub timeout_s: u64,
    /// Process of the server, to measure its memory and CPU time; repeatable
    #[arg(long)]
    pub pid: Vec<u32>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `campanile load idle`
#[derive(Args, Clone, Debug)]
pub struct IdleArgs {
    /// The flags of all scenarios.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Connections
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub conns: u32,
    /// Members of a room
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub room_size: u32,
    /// A tenth of the connections alone, eight tenths in rooms of 10 to 1000, a tenth in one room
    #[arg(long, conflicts_with = "room_size")]
    pub room_mix: bool,
    /// Then send one message to all connections and count its deliveries
    #[arg(long)]
    pub broadcast: bool,
    /// The message to all connections, with {payload}
    #[arg(
        long,
        value_name = "TEMPLATE",
        default_value = r#"{"type":"broadcast","payload":"{payload}"}"#
    )]
    pub broadcast_message: String,
    /// Seconds that its deliveries may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = timeout_seconds())]
    pub broadcast_timeout_s: u64,
    /// Seconds to hold all connections, and to measure what that costs
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = timeout_seconds())]
    pub hold_s: u64,
}

/// The flags of scenarios that publish to rooms.
#[derive(Args, Clone, Debug)]
pub struct MessageArgs {
    /// A publish, with {room}, {payload} and {seq}
    #[arg(
        long,
        value_name = "TEMPLATE",
        default_value = r#"{"type":"publish","room_id":"{room}","payload":"{payload}"}"#
    )]
    pub message: String,
    /// Length of {payload}
    #[arg(long, value_name = "BYTES", default_value_t = 120)]
    pub payload_bytes: u32,
}

/// `campanile load fanout`
#[derive(Args, Clone, Debug)]
pub struct FanoutArgs {
    /// The flags of all scenarios.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Path, first messages and publishes, as templates.
    #[command(flatten)]
    pub message: MessageArgs,
    /// Members of each room
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub members: u32,
    /// Rooms
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rooms: u32,
    /// Rooms that each member is in; there are then fewer connections, not fewer rooms
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub rooms_per_member: u32,
    /// Additional members of each room that read nothing after they have joined
    #[arg(long, alias = "silent", default_value_t = 0)]
    pub non_reading: u32,
    /// Publishers of each room, members themselves, in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: u32,
    /// Messages a second in all rooms together, whatever the server does; latency counts from the
    /// time at which a message was due
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "window")]
    pub rate: Option<f64>,
    /// Messages outstanding in each room; one that has reached all members allows the next
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub window: u32,
    /// Length of the measured window, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub duration_s: f64,
    /// Seconds of load before it
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub warmup_s: f64,
}

/// `campanile load ingest`
#[derive(Args, Clone, Debug)]
pub struct IngestArgs {
    /// The flags of all scenarios.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Connections, each alone in its room
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub conns: u32,
    /// A publish that nobody receives, with {room} and {payload}
    #[arg(
        long,
        value_name = "TEMPLATE",
        default_value = r#"{"type":"publish","room_id":"{room}","echo":false,"payload":"{payload}"}"#
    )]
    pub message: String,
    /// Length of {payload}
    #[arg(long, value_name = "BYTES", default_value_t = 60)]
    pub payload_bytes: u32,
    /// Messages before each question, in one write with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub burst: u32,
    /// Message after them that the server answers
    #[arg(long, value_name = "MESSAGE", default_value = r#"{"type":"ping"}"#)]
    pub question: String,
    /// Text in the answer to the question
    #[arg(long, value_name = "TEXT", default_value = r#""type":"pong""#)]
    pub answered_by: String,
    /// Length of a write, wherever frames begin; by default a burst is one write
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    pub cut_bytes: Option<u32>,
    /// Length of the measured window, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub duration_s: f64,
    /// Seconds of load before it
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub warmup_s: f64,
}

/// `campanile load storm`
#[derive(Args, Clone, Debug)]
pub struct StormArgs {
    /// The flags of all scenarios.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The message in the bystanders' room.
    #[command(flatten)]
    pub message: MessageArgs,
    /// Connections that are cut
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub conns: u32,
    /// Members of a room
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub room_size: u32,
    /// Close the sockets plainly instead of with a reset
    #[arg(long)]
    pub plain_close: bool,
    /// Connections in one room of their own that are not cut
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub bystanders: u32,
    /// Messages a second in the bystanders' room
    #[arg(long, value_name = "PER_SECOND", default_value_t = 50.0)]
    pub rate: f64,
    /// Seconds to measure the bystanders before the cut
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub before_s: f64,
}

impl CommonArgs {
    /// When the run ends.
    pub fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.timeout_s.max(1))
    }
}

impl CommonArgs {
    /// Refuses a measured window that is empty or does not end before the run.
    fn check_window(&self, warmup_s: f64, duration_s: f64) -> Result<(), LoadError> {
        let is_sane = duration_s > 0.0 && warmup_s >= 0.0;
        if !is_sane || warmup_s + duration_s >= self.timeout_s as f64 {
            return LoadError::usage(
                "--duration-s must be above zero, and with --warmup-s below --timeout-s",
            );
        }
        Ok(())
    }
}

impl FanoutArgs {
    /// Which connection is in which rooms.
    pub fn rooms(&self) -> RoomAssignment {
        let size = self.members + self.non_reading;
        RoomAssignment::layered(
            size * (self.rooms / self.rooms_per_member),
            size,
            self.rooms_per_member,
        )
    }

    /// When messages are published. Refuses arguments that contradict each other.
    pub fn pace(&self) -> Result<PublishPace, LoadError> {
        if self.publishers > self.members {
            return LoadError::usage(
                "publishers are members: --publishers must not be above --members",
            );
        }
        if !self.rooms.is_multiple_of(self.rooms_per_member) {
            return LoadError::usage("--rooms must be a multiple of --rooms-per-member");
        }
        if self.non_reading > 0 && self.rooms_per_member > 1 {
            return LoadError::usage("--non-reading and --rooms-per-member do not go together");
        }
        let all = u64::from(self.members) + u64::from(self.non_reading);
        if all * u64::from(self.rooms) > u64::from(u32::MAX / 2) {
            return LoadError::usage(
                "--members times --rooms is more connections than can be numbered",
            );
        }
        if self.common.no_echo && self.members < 2 {
            return LoadError::usage(
                "with --no-echo nobody receives in a room of one: --members must be above 1",
            );
        }
        self.common.check_window(self.warmup_s, self.duration_s)?;
        match self.rate {
            Some(rate) => check_rate(rate).map(PublishPace::Rate),
            None => Ok(PublishPace::Window(self.window)),
        }
    }
}

impl IngestArgs {
    /// Refuses arguments that contradict each other or have no meaning.
    pub fn check(&self) -> Result<(), LoadError> {
        if self.answered_by.is_empty() {
            return LoadError::usage(
                "--answered-by must not be empty, because every frame would fit",
            );
        }
        self.common.check_window(self.warmup_s, self.duration_s)
    }
}

impl StormArgs {
    /// Refuses arguments that contradict each other or have no meaning.
    pub fn check(&self) -> Result<(), LoadError> {
        if !(0.0..self.common.timeout_s as f64).contains(&self.before_s) {
            return LoadError::usage("--before-s must be zero or above, and below --timeout-s");
        }
        check_rate(self.rate).map(|_| ())
    }
}

/// Highest rate, in messages a second. At a higher one, messages that are due fill the memory.
const RATE_MAX: f64 = 10_000_000.0;

fn check_rate(rate: f64) -> Result<f64, LoadError> {
    if rate > 0.0 && rate <= RATE_MAX {
        return Ok(rate);
    }
    LoadError::usage("--rate must be above zero, and at most 10000000 a second")
}
