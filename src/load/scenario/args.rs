//! What can be asked of the load generator, and what it means on this host.
//!
//! Invariant: a wrong argument is said before the first connection, with what to write instead.

use crate::load::client::handshake::Greeting;
use crate::load::client::reply_rules::Answers;
use crate::load::client::rooms::Rooms;
use crate::load::client::stamp::STAMP_BYTES;
use crate::load::client::template::{Names, Signer, Template};
use crate::load::error::LoadError;
use crate::load::run::plan::{self, Brief, Sources, Target};
use crate::load::run::procfs;
use crate::load::run::publish::Pace;
use crate::load::sys;
use clap::{Args, Subcommand};
use std::net::{IpAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

/// `{n}` in a help text. clap makes a line break of these three characters, so a style that changes
/// nothing stands between them: a terminal does not show it, and clap takes it out everywhere else.
const NUMBER_HOLE: &str = "{\u{1b}[0mn}";

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
    /// Only talk: what does receiving a message cost?
    Talk(TalkArgs),
    /// Cut all connections at once: how long until everybody is back, and what do others notice?
    Storm(StormArgs),
}

/// What all scenarios share.
#[derive(Args, Clone, Debug)]
pub struct Common {
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
    /// wait for the server's word before speaking. In MESSAGE: {room}, {n}, {said:NAME} (what
    /// stands behind NAME in that frame) and {signature}. Engine.io's pings: '2=3'
    #[arg(
        long,
        value_name = "RULE",
        help = format!(
            "'BEGINNING=MESSAGE', repeatable: a text frame that begins so is answered so; also how \
             to wait for the server's word before speaking. In MESSAGE: {{room}}, {NUMBER_HOLE}, \
             {{said:NAME}} (what stands behind NAME in that frame) and {{signature}}. Engine.io's \
             pings: '2=3'"
        )
    )]
    pub answer: Vec<String>,
    /// 'KEY=TEXT': {signature} in an --answer is the HMAC-SHA256 of TEXT under KEY, in hex. Pusher's
    /// private channels: 'secret={said:socket_id}:private-{room}'
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
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub handshake_timeout_s: u64,
    /// Attempts after a failed first one (a storm tries until the end)
    #[arg(long, default_value_t = 5)]
    pub retries: u8,
    /// Seconds after which everything ends
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
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
    pub common: Common,
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
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub broadcast_timeout_s: u64,
    /// Seconds to hold all connections before the last look
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
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
    pub common: Common,
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
    #[arg(long, default_value_t = 0)]
    pub silent: u32,
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

/// `campanile load talk`
#[derive(Args, Clone, Debug)]
pub struct TalkArgs {
    /// Everything common.
    #[command(flatten)]
    pub common: Common,
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
    pub common: Common,
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

/// How the connections of a fleet are laid out.
pub struct Layout {
    /// Who is where.
    pub rooms: Rooms,
    /// Publishers a room.
    pub publishers: u32,
    /// What is published.
    pub message: String,
    /// Characters of a payload.
    pub payload_bytes: u32,
    /// What room names begin with.
    pub room_prefix: String,
    /// Members of each room that read nothing once they have joined.
    pub silent: u32,
    /// Attempts after the first; `None`: until it works.
    pub retries: Option<u8>,
    /// Threads that are wanted.
    pub threads: u32,
}

impl Common {
    /// The fleet's orders, and whether its threads must have file tables of their own.
    pub fn brief(&self, layout: Layout) -> Result<(Brief, bool), LoadError> {
        let conns = layout.rooms.conns();
        let message = Template::parse(&layout.message);
        if !message.has_payload() {
            return usage("the message template has no {payload}, so nothing could be counted");
        }
        if (layout.payload_bytes as usize) < STAMP_BYTES {
            return usage(&format!(
                "--payload-bytes {} is too small: number and time need {STAMP_BYTES}",
                layout.payload_bytes
            ));
        }
        let init: Vec<_> = self.init.iter().map(|text| Template::parse(text)).collect();
        let (answers, signer) = self.answers()?;
        let random = random_bytes()?;
        let run = u32::from_le_bytes([random[0], random[1], random[2], random[3]]);
        let (targets, path) = self.targets(random)?;
        let path = self.path(&path, &layout.rooms)?;
        if init.iter().chain([&message, &path]).any(Template::needs_a_frame) {
            return usage("{said:…} and {signature} can be filled in an --answer only");
        }
        let (workers, needs_own_files) =
            workers(conns, self.threads.max(layout.threads), layout.publishers)?;
        if layout.rooms.layers() > 1 && workers > 1 {
            return usage("--rooms-per-member above 1 needs all connections in one thread");
        }
        let bounds = plan::cut(conns, workers, &layout.rooms, layout.publishers);
        let sources = self.sources(conns, &targets, run);
        let ready = (!self.ready.is_empty()).then(|| self.ready.clone());
        let brief = Brief {
            targets,
            path,
            init,
            answers,
            signer,
            message,
            names: Names {
                room_prefix: layout.room_prefix,
                rooms: layout.rooms,
                token_secret: self.token_secret.clone(),
            },
            silent: layout.silent,
            ready,
            echo: !self.no_echo,
            publishers: layout.publishers,
            payload_bytes: layout.payload_bytes as usize,
            run,
            epoch: Instant::now(),
            sources,
            connect_concurrency: self.connect_concurrency,
            connect_rate: match self.connect_rate {
                Some(rate) if rate.is_nan() || rate <= 0.0 => {
                    return usage("--connect-rate must be above zero");
                }
                rate => rate.map(|rate| rate / f64::from(workers)),
            },
            handshake_timeout: Duration::from_secs(self.handshake_timeout_s.max(1)),
            retries: layout.retries,
            bounds,
            cores: self.cores.as_deref().map_or(Ok(Vec::new()), parse_cores)?,
            stall: Duration::from_secs(5),
            write_bytes_max: usize::MAX,
            speech: None,
        };
        Ok((brief, needs_own_files))
    }

    /// The path, if it says all that it must.
    fn path(&self, text: &str, rooms: &Rooms) -> Result<Template, LoadError> {
        let path = Template::parse(text);
        if rooms.layers() > 1 && !path.has_all_rooms() {
            return usage("--path has no {room_ids}, so nobody would be in several rooms");
        }
        if path.has_token() && self.token_secret.is_none() {
            return usage("--path has a {token}, and there is no --token-secret to sign it");
        }
        Ok(path)
    }

    /// What is said to a server that speaks first, and how it is signed.
    fn answers(&self) -> Result<(Answers, Option<Signer>), LoadError> {
        let mut answers = Answers::default();
        for rule in &self.answer {
            if !answers.add(rule) {
                return usage(&format!("--answer {rule:?}: write it as 'BEGINNING=MESSAGE'"));
            }
        }
        let signer = match &self.sign {
            None => None,
            Some(text) => match Signer::parse(text) {
                None => return usage(&format!("--sign {text:?}: write it as 'KEY=TEXT'")),
                signer => signer,
            },
        };
        if signer.is_none() && answers.replies().any(Template::has_signature) {
            return usage("an --answer has a {signature}, so say with --sign what is signed");
        }
        Ok((answers, signer))
    }

    /// The servers, and the path template.
    fn targets(&self, key: [u8; 16]) -> Result<(Vec<Target>, String), LoadError> {
        for header in &self.header {
            if !header.contains(':') || header.contains(['\r', '\n']) {
                return usage(&format!("--header {header:?}: write it as 'Name: value'"));
            }
        }
        let (mut targets, mut path) = (Vec::new(), String::new());
        for url in &self.url {
            let (host, own_path) = parse_url(url)?;
            let mut addrs = host
                .to_socket_addrs()
                .map_err(|error| LoadError::Usage(format!("--url {url}: {error}")))?;
            let Some(addr) = addrs.next() else {
                return usage(&format!("--url {url}: the name has no address"));
            };
            targets.push(Target { addr, greeting: Greeting::new(&host, &self.header, key) });
            if path.is_empty() {
                path = own_path;
            }
        }
        match &self.path {
            Some(given) if !given.starts_with('/') => usage("--path must begin with /"),
            Some(given) if given.contains([' ', '\r', '\n']) => usage("--path has a blank in it"),
            Some(given) => Ok((targets, given.clone())),
            None if !(self.init.is_empty() && self.answer.is_empty()) => Ok((targets, path)),
            None => {
                path.push(if path.contains('?') { '&' } else { '?' });
                path.push_str("{room_ids}");
                Ok((targets, path))
            }
        }
    }

    fn sources(&self, conns: u32, targets: &[Target], salt: u32) -> Sources {
        if !self.source.is_empty() {
            return Sources::These(self.source.clone());
        }
        let loopback = |target: &Target| target.addr.is_ipv4() && target.addr.ip().is_loopback();
        if targets.iter().all(loopback) {
            return Sources::loopback(conns, targets.len() as u32, procfs::local_ports(), salt);
        }
        Sources::Kernel
    }

    /// When everything ends.
    pub fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.timeout_s.max(1))
    }
}

impl FanoutArgs {
    /// Who is where.
    pub fn rooms(&self) -> Rooms {
        let size = self.members + self.silent;
        Rooms::layered(size * (self.rooms / self.rooms_per_member), size, self.rooms_per_member)
    }

    /// How messages are spaced, once the arguments make sense together.
    pub fn pace(&self) -> Result<Pace, LoadError> {
        if self.publishers > self.members {
            return usage("--publishers are members: there cannot be more of them than --members");
        }
        if !self.rooms.is_multiple_of(self.rooms_per_member) {
            return usage("--rooms must be a multiple of --rooms-per-member");
        }
        if self.silent > 0 && self.rooms_per_member > 1 {
            return usage("--silent and --rooms-per-member do not go together");
        }
        let all = u64::from(self.members) + u64::from(self.silent);
        if all * u64::from(self.rooms) > u64::from(u32::MAX / 2) {
            return usage("--members times --rooms is more connections than can be numbered");
        }
        if self.common.no_echo && self.members < 2 {
            return usage("with --no-echo a room of one hears nothing: --members must be above 1");
        }
        let measured = self.warmup_s + self.duration_s;
        let sane = self.duration_s > 0.0 && self.warmup_s >= 0.0;
        if !sane || measured >= self.common.timeout_s as f64 {
            return usage("--duration-s must be above zero, and with --warmup-s below --timeout-s");
        }
        match self.rate {
            Some(rate) if rate.is_nan() || rate <= 0.0 => usage("--rate must be above zero"),
            Some(rate) => Ok(Pace::Rate(rate)),
            None => Ok(Pace::Window(self.window)),
        }
    }
}

fn usage<T>(why: &str) -> Result<T, LoadError> {
    Err(LoadError::Usage(why.to_owned()))
}

/// How many workers, and whether each must have a file table of its own.
fn workers(conns: u32, wanted: u32, publishers: u32) -> Result<(u32, bool), LoadError> {
    let files = sys::raise_open_files().map_err(|error| {
        LoadError::Host(format!("cannot read the limit of open files: {error}"))
    })?;
    // A tenth is left for what else is open, and for cuts that move to keep publishers together.
    let capacity = u32::try_from(files / 10 * 9).unwrap_or(u32::MAX).saturating_sub(publishers);
    if capacity < 16 {
        return Err(LoadError::Host(format!(
            "{files} open files are too few for {publishers} publishers in one thread. \
             Raise the limit: ulimit -n"
        )));
    }
    let needed = conns.div_ceil(capacity);
    Ok((needed.max(wanted).min(conns), needed > 1))
}

/// `host:port` and path of a `ws://` URL.
fn parse_url(url: &str) -> Result<(String, String), LoadError> {
    let wrong = |why: &str| LoadError::Usage(format!("--url {url}: {why}"));
    let uri: http::Uri = url.parse().map_err(|error| wrong(&format!("{error}")))?;
    match uri.scheme_str() {
        Some("ws" | "http") => {}
        Some("wss" | "https") => {
            return Err(wrong("TLS is not spoken here; measure behind the TLS terminator"));
        }
        _ => return Err(wrong("write it as ws://host:port/path")),
    }
    let host = uri.host().ok_or_else(|| wrong("no host"))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok((format!("{host}:{}", uri.port_u16().unwrap_or(80)), path.to_owned()))
}

/// `1`, `2-5`, `0,2-3`
fn parse_cores(text: &str) -> Result<Vec<usize>, LoadError> {
    let wrong = || LoadError::Usage(format!("--cores {text}: write it as 1 or 0,2-3"));
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last >= 1024 {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

fn random_bytes() -> Result<[u8; 16], LoadError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| LoadError::Host(format!("no random bytes: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn parse(line: &str) -> Result<LoadArgs, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.load)
    }

    fn idle(line: &str) -> Result<Brief, LoadError> {
        let Scenario::Idle(args) = parse(line).expect("clap takes it").scenario else {
            panic!("{line} is not idle")
        };
        let layout = Layout {
            rooms: Rooms::of_size(args.conns, args.room_size),
            publishers: 1,
            message: args.broadcast_message,
            payload_bytes: 120,
            room_prefix: args.common.room_prefix.clone(),
            silent: 0,
            retries: Some(args.common.retries),
            threads: 1,
        };
        args.common.brief(layout).map(|(brief, _)| brief)
    }

    fn said(line: &str) -> String {
        idle(line).expect_err("a wrong argument").to_string()
    }

    #[test]
    fn our_own_server_is_the_default() {
        let brief = idle("load idle").expect("defaults are valid");
        assert_eq!(brief.path, Template::parse("/ws?{room_ids}"));
        assert_eq!(brief.ready.as_deref(), Some(r#""type":"ok""#));
        assert_eq!(brief.targets[0].addr.port(), 8080);
    }

    #[test]
    fn another_server_gets_its_own_path_and_messages() {
        let brief =
            idle("load idle --url ws://127.0.0.1:9/app/x --init [{room}] --ready ").expect("valid");
        assert_eq!(brief.path, Template::parse("/app/x"));
        assert_eq!(brief.init.len(), 1);
        assert_eq!(brief.ready, None);
        let brief = idle("load idle --url ws://127.0.0.1:9/x --answer 0=40").expect("valid");
        assert_eq!(brief.path, Template::parse("/x"));
        let brief = idle("load idle --url ws://127.0.0.1:9/x?a=b").expect("valid");
        assert_eq!(brief.path, Template::parse("/x?a=b&{room_ids}"));
    }

    #[test]
    fn a_wrong_argument_says_what_to_write_instead() {
        assert!(said("load idle --url wss://127.0.0.1/").contains("TLS"));
        assert!(said("load idle --url 127.0.0.1:80").contains("ws://"));
        assert!(said("load idle --path ws").contains("begin with /"));
        assert!(said("load idle --cores 3-1").contains("0,2-3"));
        assert!(said("load idle --header X").contains("Name: value"));
        assert!(said("load idle --broadcast-message hello").contains("{payload}"));
        assert!(said("load idle --connect-rate 0").contains("above zero"));
        assert!(said("load idle --answer ping").contains("BEGINNING=MESSAGE"));
        assert!(said("load idle --answer a={signature}").contains("--sign"));
        assert!(said("load idle --sign key").contains("KEY=TEXT"));
        assert!(said("load idle --init {said:id}").contains("--answer only"));
        assert!(parse("load fanout --rate 5 --window 2").is_err());
        assert!(parse("load idle --conns 0").is_err());
        assert!(parse("load").is_err());
    }

    #[test]
    fn a_fanout_whose_numbers_contradict_each_other_is_refused() {
        let pace = |line: &str| match parse(line).expect("clap takes it").scenario {
            Scenario::Fanout(args) => args.pace().map_err(|error| error.to_string()),
            _ => panic!("{line} is not a fanout"),
        };
        assert!(matches!(pace("load fanout"), Ok(Pace::Window(1))));
        assert!(matches!(pace("load fanout --rate 0.5"), Ok(Pace::Rate(_))));
        assert!(pace("load fanout --members 2 --publishers 3").is_err());
        assert!(pace("load fanout --duration-s 700").is_err());
        assert!(pace("load fanout --no-echo --members 1").is_err());
        assert!(pace("load fanout --rate=-1").is_err());
        assert!(pace("load fanout --rate=nan").is_err());
    }

    #[test]
    fn more_connections_than_descriptors_take_more_threads() {
        let files = sys::raise_open_files().expect("the limit is readable");
        let capacity = (files / 10 * 9) as u32 - 1;
        assert_eq!(workers(capacity, 1, 1).expect("fits"), (1, false));
        assert_eq!(workers(capacity + 1, 1, 1).expect("fits"), (2, true));
        assert_eq!(workers(3, 64, 1).expect("fits"), (3, false));
    }
}
