//! From arguments to the plan of a run: what they mean on this host.
//!
//! Names are resolved, templates parsed, source addresses chosen, and connections split over as
//! many threads as the limit of open files demands.
//!
//! Invariant: a wrong argument is refused before the first connect, with what to write instead.

use super::args::CommonArgs;
use crate::load::client::burst::BurstTemplate;
use crate::load::client::handshake::ClientHandshake;
use crate::load::client::plan::{ClientPlan, LoadTarget, SourceAddresses};
use crate::load::client::reply_rules::ReplyRules;
use crate::load::client::rooms::RoomAssignment;
use crate::load::client::stamp::STAMP_BYTES;
use crate::load::client::template::{ReplySigner, Template, TemplateContext};
use crate::load::error::LoadError;
use crate::load::run::plan::{self, RunPlan};
use crate::load::run::procfs;
use crate::load::sys;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a scenario adds to the common arguments. Made by the scenario, used up by
/// [`CommonArgs::run_plan`].
pub struct FleetLayout {
    /// Which connection is in which rooms.
    pub rooms: RoomAssignment,
    /// Publishers of each room.
    pub publishers: u32,
    /// Template of a publish.
    pub message: String,
    /// Length of a payload.
    pub payload_bytes: u32,
    /// Beginning of room names.
    pub room_prefix: String,
    /// The last so many members of each room read nothing after they have joined.
    pub non_reading: u32,
    /// Attempts after the first; `None`: no limit.
    pub retries: Option<u8>,
    /// Longest write, in bytes.
    pub write_bytes_max: usize,
    /// The burst of each connection, if the scenario sends bursts.
    pub burst: Option<BurstTemplate>,
}

impl FleetLayout {
    /// One publisher in each room, all members read, no bursts.
    pub fn new(
        common: &CommonArgs,
        rooms: RoomAssignment,
        message: &str,
        payload_bytes: u32,
    ) -> FleetLayout {
        FleetLayout {
            rooms,
            publishers: 1,
            message: message.to_owned(),
            payload_bytes,
            room_prefix: common.room_prefix.clone(),
            non_reading: 0,
            retries: Some(common.retries),
            write_bytes_max: usize::MAX,
            burst: None,
        }
    }
}

impl CommonArgs {
    /// What these flags mean for a run with this layout. Fails where they contradict each other.
    pub fn run_plan(&self, layout: FleetLayout) -> Result<RunPlan, LoadError> {
        let publishers = layout.publishers;
        let mut client = self.client_plan(layout)?;
        let conns = client.rooms().conns();
        let (workers, needs_own_file_table) = workers(conns, self.threads, publishers)?;
        if client.rooms().layers() > 1 && workers > 1 {
            return LoadError::usage(
                "--rooms-per-member above 1 needs all connections in one thread",
            );
        }
        client.connect_rate = self.connect_rate_per_worker(workers)?;
        Ok(RunPlan {
            echo: !self.no_echo,
            publishers,
            bounds: plan::split_connections(conns, workers, client.rooms(), publishers),
            cores: self.cores.as_deref().map_or(Ok(Vec::new()), parse_cores)?,
            priority: 0,
            needs_own_file_table,
            delivery_timeout: Duration::from_secs(5),
            client: Arc::new(client),
        })
    }

    /// The plan of the connections, without the connect rate: it depends on the number of workers.
    fn client_plan(&self, layout: FleetLayout) -> Result<ClientPlan, LoadError> {
        let message = Template::parse(&layout.message);
        if !message.has_payload() {
            return LoadError::usage(
                "the message template has no {payload}, so its deliveries could not be counted",
            );
        }
        if (layout.payload_bytes as usize) < STAMP_BYTES {
            return LoadError::usage(&format!(
                "--payload-bytes {} is too small: the stamp needs {STAMP_BYTES}",
                layout.payload_bytes
            ));
        }
        let init: Vec<_> = self.init.iter().map(|text| Template::parse(text)).collect();
        let (reply_rules, signer) = self.reply_rules()?;
        let random = random_bytes()?;
        let run_id = u32::from_le_bytes([random[0], random[1], random[2], random[3]]);
        let (targets, path) = self.targets(random)?;
        let path = self.path(&path, &layout.rooms)?;
        if init.iter().chain([&message, &path]).any(Template::needs_received_frame) {
            return LoadError::usage("{field:…} and {signature} have a value in an --answer only");
        }
        let sources = self.sources(layout.rooms.conns(), &targets, run_id);
        Ok(ClientPlan {
            targets,
            path,
            init,
            reply_rules,
            signer,
            message,
            is_ordered: layout.publishers == 1 && layout.rooms.layers() == 1,
            context: TemplateContext {
                room_prefix: layout.room_prefix,
                rooms: layout.rooms,
                token_secret: self.token_secret.clone(),
                token_claims: self.token_claims()?,
            },
            non_reading: layout.non_reading,
            ready: (!self.ready.is_empty()).then(|| self.ready.clone()),
            payload_bytes: layout.payload_bytes as usize,
            run_id,
            epoch: Instant::now(),
            sources,
            connect_concurrency: self.connect_concurrency,
            connect_rate: None,
            handshake_timeout: Duration::from_secs(self.handshake_timeout_s.max(1)),
            retries: layout.retries,
            write_bytes_max: layout.write_bytes_max,
            burst: layout.burst,
        })
    }

    /// Connects a second of one worker.
    fn connect_rate_per_worker(&self, workers: u32) -> Result<Option<f64>, LoadError> {
        match self.connect_rate {
            Some(rate) if rate.is_nan() || rate <= 0.0 => {
                LoadError::usage("--connect-rate must be above zero")
            }
            rate => Ok(rate.map(|rate| rate / f64::from(workers))),
        }
    }

    /// The path, if it has the placeholders that the other arguments need.
    fn path(&self, text: &str, rooms: &RoomAssignment) -> Result<Template, LoadError> {
        let path = Template::parse(text);
        if rooms.layers() > 1 && !path.has_room_ids() {
            return LoadError::usage(
                "--path has no {room_ids}, so no connection would be in several rooms",
            );
        }
        if path.has_token() && self.token_secret.is_none() {
            return LoadError::usage(
                "--path has a {token}, and there is no --token-secret to sign it",
            );
        }
        Ok(path)
    }

    /// The claims of tokens.
    fn token_claims(&self) -> Result<Template, LoadError> {
        let claims = Template::parse(&self.token_claims);
        if claims.has_token() || claims.needs_received_frame() || claims.has_payload() {
            return LoadError::usage(
                "--token-claims has {room}, {room_ids} and {n}, and no others",
            );
        }
        Ok(claims)
    }

    /// The reply rules, and the signer if there is one.
    fn reply_rules(&self) -> Result<(ReplyRules, Option<ReplySigner>), LoadError> {
        let mut rules = ReplyRules::default();
        for rule in &self.answer {
            if !rules.add(rule) {
                return LoadError::usage(&format!(
                    "--answer {rule:?}: write it as 'BEGINNING=MESSAGE'"
                ));
            }
        }
        let signer = match &self.sign {
            None => None,
            Some(text) => match ReplySigner::parse(text) {
                None => {
                    return LoadError::usage(&format!("--sign {text:?}: write it as 'KEY=TEXT'"));
                }
                signer => signer,
            },
        };
        if signer.is_none() && rules.replies().any(Template::has_signature) {
            return LoadError::usage(
                "an --answer has a {signature}: give --sign, which says what is signed",
            );
        }
        Ok((rules, signer))
    }

    /// The servers, and the text of the path template.
    fn targets(&self, key: [u8; 16]) -> Result<(Vec<LoadTarget>, String), LoadError> {
        for header in &self.header {
            if !header.contains(':') || header.contains(['\r', '\n']) {
                return LoadError::usage(&format!(
                    "--header {header:?}: write it as 'Name: value'"
                ));
            }
        }
        let (mut targets, mut path) = (Vec::new(), String::new());
        for url in &self.url {
            let (host, own_path) = parse_url(url)?;
            let mut addrs = host
                .to_socket_addrs()
                .map_err(|error| LoadError::Usage(format!("--url {url}: {error}")))?;
            let Some(addr) = addrs.next() else {
                return LoadError::usage(&format!("--url {url}: the name has no address"));
            };
            targets.push(LoadTarget {
                addr,
                handshake: ClientHandshake::new(&host, &self.header, key),
            });
            if path.is_empty() {
                path = own_path;
            }
        }
        match &self.path {
            Some(given) if !given.starts_with('/') => LoadError::usage("--path must begin with /"),
            Some(given) if given.contains([' ', '\r', '\n']) => {
                LoadError::usage("--path must not have a blank")
            }
            Some(given) => Ok((targets, given.clone())),
            None if !(self.init.is_empty() && self.answer.is_empty()) => Ok((targets, path)),
            None => {
                path.push(if path.contains('?') { '&' } else { '?' });
                path.push_str("{room_ids}");
                Ok((targets, path))
            }
        }
    }

    fn sources(&self, conns: u32, targets: &[LoadTarget], salt: u32) -> SourceAddresses {
        if !self.source.is_empty() {
            return SourceAddresses::Listed(self.source.clone());
        }
        let loopback =
            |target: &LoadTarget| target.addr.is_ipv4() && target.addr.ip().is_loopback();
        if targets.iter().all(loopback) {
            return SourceAddresses::loopback(
                conns,
                targets.len() as u32,
                procfs::local_ports(),
                salt,
            );
        }
        SourceAddresses::KernelChoice
    }
}

/// Number of workers, and whether each must have a file table of its own.
pub(super) fn workers(conns: u32, wanted: u32, publishers: u32) -> Result<(u32, bool), LoadError> {
    let files = sys::raise_open_file_limit().map_err(|error| {
        LoadError::Host(format!("cannot read the limit of open files: {error}"))
    })?;
    // A tenth is left for other files, and for bounds that move to keep publishers together.
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
            return Err(wrong(
                "the generator has no TLS; give it the address behind the TLS terminator",
            ));
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
