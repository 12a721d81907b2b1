//! What can be asked of the load generator, and what it means on this host.
//!
//! Invariant: a wrong argument is said before the first connection, with what to write instead.

use crate::load::client::rooms::RoomAssignment;
use crate::load::error::LoadError;
use crate::load::run::publish::PublishPace;
use clap::{Args, Subcommand};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// `{n}` in a help text. clap makes a line break of these three characters, so a style that changes
/// nothing stands between them: a terminal does not show it, and clap takes it out everywhere else.
const NUMBER_HOLE: &str = "{\u{1b}[0mn}";

/// Seconds of a timeout: at most a year, so that every sum with the clock is a time.
fn timeout_seconds() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(0..=31_536_000)
}

/// `campanile load`: load for this or any other WebSocket server.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// What to do.
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// The four questions.
#[derive(Subcommand, Clone, Debug)]
pub enum Scenario {
    /// Hold many connections: do they all join, how fast, and what does each cost?
    Idle(IdleArgs),
    /// Publish to rooms: how many deliveries, how late, and at what cost?
    Fanout(FanoutArgs),
    /// Publish where nobody receives: what does taking a message in cost?
    #[command(alias = "talk")]
    Ingest(IngestArgs),
    /// Cut all connections at once: how long until everybody is back, and what do others notice?
    Storm(StormArgs),
}

/// What all scenarios share.
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
            "Request path, with {{room}}, {{room_ids}}, {{token}} and {NUMBER_HOLE}; by default the \
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
            "Message sent once a connection is open, with {{room}} and {NUMBER_HOLE}; repeatable"
        )
    )]
    pub init: Vec<String>,
    /// 'BEGINNING=MESSAGE', repeatable: a text frame that begins so is answered so; also how to
    /// wait for the server's word before speaking. In MESSAGE: {room}, {n}, {field:NAME} (what
    /// stands behind NAME in that frame) and {signature}. Engine.io's pings: '2=3'
    #[arg(
        long,
        value_name = "RULE",
        help = format!(
            "'BEGINNING=MESSAGE', repeatable: a text frame that begins so is questions_answered so; also how \
             to wait for the server's word before speaking. In MESSAGE: {{room}}, {NUMBER_HOLE}, \
             {{field:NAME}} (what stands behind NAME in that frame) and {{signature}}. Engine.io's \
             pings: '2=3'"
        )
    )]
    pub answer: Vec<String>,
    /// 'KEY=TEXT': {signature} in an --answer is the HMAC-SHA256 of TEXT under KEY, in hex. Pusher's
    /// private channels: 'secret={field:socket_id}:private-{room}'
    #[arg(long, value_name = "RULE")]
    pub sign: Option<String>,
    /// The server does not send a message back to the connection that published it
    #[arg(long)]
    pub no_echo: bool,
    /// Text in the frame by which the server says that a connection has joined; empty for servers
    /// that say nothing
    #[arg(long, value_name = "TEXT", default_value = r#""type":"ok""#)]
    pub ready: String,
    /// What room names begin with; the room's number follows
    #[arg(long, default_value = "load-")]
    pub room_prefix: String,
    /// Signs what stands for {token}: one for the user who is called like the room
    #[arg(long, value_name = "SECRET")]
    pub token_secret: Option<String>,
    /// Source address, repeatable; by default many of 127.0.0.0/8 for a loopback server, else the
    /// kernel's choice
    #[arg(long, value_name = "ADDRESS")]
    pub source: Vec<IpAddr>,
    /// Threads; more are taken where one would need more descriptors than the host allows
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
    /// Seconds from a connect until it must have joined
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = timeout_seconds())]
    pub handshake_timeout_s: u64,
    /// Attempts after a failed first one (a storm tries until the end)
    #[arg(long, default_value_t = 5)]
    pub retries: u8,
    /// Seconds after which everything ends
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = timeout_seconds())]
    pub timeout_s: u64,
    /// Process of the server, for its memory and processor time; repeatable
    #[arg(long)]
    pub pid: Vec<u32>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `campanile load idle`
#[derive(Args, Clone, Debug)]
pub struct IdleArgs {
    /// Everything common.
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
    /// Then send one message to everybody and count whom it reaches
    #[arg(long)]
    pub broadcast: bool,
    /// The message to everybody, with {payload}
    #[arg(
        long,
        value_name = "TEMPLATE",
        default_value = r#"{"type":"broadcast","payload":"{payload}"}"#
    )]
    pub broadcast_message: String,
    /// Seconds that the message may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = timeout_seconds())]
    pub broadcast_timeout_s: u64,
    /// Seconds to hold all connections before the last look
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = timeout_seconds())]
    pub hold_s: u64,
}

/// What is published.
#[derive(Args, Clone, Debug)]
pub struct MessageArgs {
    /// A publish, with {room}, {payload} and {seq}
    #[arg(
        long,
        value_name = "TEMPLATE",
        default_value = r#"{"type":"publish","room_id":"{room}","payload":"{payload}"}"#
    )]
    pub message: String,
    /// Characters that stand for {payload}
    #[arg(long, value_name = "BYTES", default_value_t = 120)]
    pub payload_bytes: u32,
}

/// `campanile load fanout`
#[derive(Args, Clone, Debug)]
pub struct FanoutArgs {
    /// Everything common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What is published.
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
    /// Members of each room, beside the --members, that read nothing once they have joined
    #[arg(long, alias = "silent", default_value_t = 0)]
    pub non_reading: u32,
    /// Publishers of each room, members themselves, in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: u32,
    /// Messages a second over all rooms, whatever the server does; latency counts from when a
    /// message was due
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "window")]
    pub rate: Option<f64>,
    /// Messages outstanding in each room; one that has reached all members lets the next go
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub window: u32,
    /// Seconds measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub duration_s: f64,
    /// Seconds before that
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub warmup_s: f64,
}

/// `campanile load ingest`
#[derive(Args, Clone, Debug)]
pub struct IngestArgs {
    /// Everything common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Connections, each alone in its room
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub conns: u32,
    /// A publish that reaches nobody, with {room} and {payload}
    #[arg(
        long,
        value_name = "TEMPLATE",
        default_value = r#"{"type":"publish","room_id":"{room}","echo":false,"payload":"{payload}"}"#
    )]
    pub message: String,
    /// Characters that stand for {payload}
    #[arg(long, value_name = "BYTES", default_value_t = 60)]
    pub payload_bytes: u32,
    /// Messages before each question, in one write with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub burst: u32,
    /// What is asked behind them
    #[arg(long, value_name = "MESSAGE", default_value = r#"{"type":"ping"}"#)]
    pub question: String,
    /// Text in the frame that answers it
    #[arg(long, value_name = "TEXT", default_value = r#""type":"pong""#)]
    pub answered_by: String,
    /// Cut everything into writes of so many bytes, wherever frames begin
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    pub cut_bytes: Option<u32>,
    /// Seconds measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub duration_s: f64,
    /// Seconds before that
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub warmup_s: f64,
}

/// `campanile load storm`
#[derive(Args, Clone, Debug)]
pub struct StormArgs {
    /// Everything common.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What the bystanders publish.
    #[command(flatten)]
    pub message: MessageArgs,
    /// Connections that are cut
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub conns: u32,
    /// Members of a room
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub room_size: u32,
    /// Close properly instead of with a reset
    #[arg(long)]
    pub plain_close: bool,
    /// Connections in one room of their own that are not cut
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub bystanders: u32,
    /// Messages a second in that room
    #[arg(long, value_name = "PER_SECOND", default_value_t = 50.0)]
    pub rate: f64,
    /// Seconds to watch the bystanders before the cut
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub before_s: f64,
}

impl CommonArgs {
    /// When everything ends.
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
    /// Who is where.
    pub fn rooms(&self) -> RoomAssignment {
        let size = self.members + self.non_reading;
        RoomAssignment::layered(
            size * (self.rooms / self.rooms_per_member),
            size,
            self.rooms_per_member,
        )
    }

    /// How messages are spaced, once the arguments make sense together.
    pub fn pace(&self) -> Result<PublishPace, LoadError> {
        if self.publishers > self.members {
            return LoadError::usage(
                "--publishers are members: there cannot be more of them than --members",
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
                "with --no-echo a room of one hears nothing: --members must be above 1",
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
    /// Refuses arguments that make no sense together.
    pub fn check(&self) -> Result<(), LoadError> {
        if self.answered_by.is_empty() {
            return LoadError::usage("--answered-by must not be empty: every frame would fit");
        }
        self.common.check_window(self.warmup_s, self.duration_s)
    }
}

impl StormArgs {
    /// Refuses arguments that make no sense together.
    pub fn check(&self) -> Result<(), LoadError> {
        if !(0.0..self.common.timeout_s as f64).contains(&self.before_s) {
            return LoadError::usage("--before-s must be zero or above, and below --timeout-s");
        }
        check_rate(self.rate).map(|_| ())
    }
}

/// A generator that is asked for more than this fills its memory with messages that are due.
const RATE_MAX: f64 = 10_000_000.0;

fn check_rate(rate: f64) -> Result<f64, LoadError> {
    if rate > 0.0 && rate <= RATE_MAX {
        return Ok(rate);
    }
    LoadError::usage("--rate must be above zero, and at most 10000000 a second")
}
