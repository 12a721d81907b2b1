//! The server of one run: ours or the floor, in a process of its own.
//!
//! Invariant: it has ended before the next run begins.

use crate::cases::Case;
use crate::measure::Envelope;
use crate::{ROUNDS, SMOKE, Size};
use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Lines that a server may say before the one that says where it listens.
const LINES_BEFORE_LISTENING_MAX: usize = 200;

/// One connection of a benchmark sends as much as it can: the rates of docs/limits.md are off,
/// and a user may have any number of connections.
pub const NO_RATES: [&str; 10] = [
    "--limits-messages-per-s-max",
    "0",
    "--limits-received-bytes-per-s-max",
    "0",
    "--limits-joins-per-s-max",
    "0",
    "--limits-requests-per-s-max",
    "0",
    "--limits-connections-per-user-max",
    "0",
];

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// Ours.
    Campanile,
    /// One send a frame and member.
    Each,
    /// One send a turn and member.
    Joined,
    /// Receives and unmasks.
    Receive,
    /// Pings.
    Heartbeat,
}

impl Contestant {
    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Campanile => "campanile",
            Contestant::Each => "floor",
            Contestant::Joined => "joined floor",
            Contestant::Receive => "receive floor",
            Contestant::Heartbeat => "heartbeat floor",
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Contestant::Campanile => unreachable!("it is not the floor"),
            Contestant::Each => "each",
            Contestant::Joined => "joined",
            Contestant::Receive => "receive",
            Contestant::Heartbeat => "heartbeat",
        }
    }
}

/// A server process, ended when dropped.
pub struct Server {
    child: Child,
    /// Held open: a server that says something more must not meet a closed pipe.
    said: Option<BufReader<ChildStdout>>,
    /// Where it listens.
    pub url: String,
}

impl Server {
    /// Starts it, and waits until it listens.
    pub fn start(
        contestant: Contestant,
        case: &Case,
        size: &Size,
        envelope: &Envelope,
    ) -> Result<Server, String> {
        let mut command = match contestant {
            Contestant::Campanile => ours(case, size),
            _ => theirs(contestant, size, envelope)?,
        };
        // The server takes CAMPANILE_… for its own configuration, and refuses what it does not know.
        command.env_remove(SMOKE).env_remove(ROUNDS);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut server = Server { child, said: None, url: String::new() };
        server.url = server.listening_url()?;
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads the line `… listening on [ws://]host:port[/ws][, …]`.
    fn listening_url(&mut self) -> Result<String, String> {
        let stdout = self.child.stdout.take().expect("it was asked for");
        let said = self.said.insert(BufReader::new(stdout));
        for line in said.by_ref().lines().take(LINES_BEFORE_LISTENING_MAX) {
            let line = line.map_err(|error| error.to_string())?;
            let Some((_, after)) = line.split_once("listening on ") else { continue };
            let word = after.split([',', ' ']).next().unwrap_or_default();
            let host = word.trim_start_matches("ws://").split('/').next().unwrap_or_default();
            return Ok(format!("ws://{host}/ws"));
        }
        Err("it ended without listening".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may say that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ours(case: &Case, size: &Size) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_campanile"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
    command.args(["--log-level", "error"]);
    command.args(NO_RATES);
    command.args(["--auth-user-rights", "publish,send,broadcast"]);
    if !case.serve.contains("--shards") {
        command.args(["--shards", "1"]);
    }
    command.args(case.serve.split_whitespace());
    if let Some((core, _)) = size.cores {
        command.args(["--cores", &core.to_string()]);
    }
    command
}

fn theirs(contestant: Contestant, size: &Size, envelope: &Envelope) -> Result<Command, String> {
    let own = env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
    let mut command = Command::new(own);
    command.args(["floor", "--listen", "127.0.0.1:0", "--mode", contestant.mode()]);
    command.args(["--prefix", &envelope.prefix, "--suffix", &envelope.suffix]);
    command.args(["--ping-interval-ms", "1000"]);
    if let Some((core, _)) = size.cores {
        command.args(["--core", &core.to_string()]);
    }
    Ok(command)
}
