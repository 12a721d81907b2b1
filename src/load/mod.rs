//! The load generator behind `campanile load`.
//!
//! It measures what sizes a host: what an idle connection costs (`idle`), what a delivery costs and
//! how late it is (`fanout`), what receiving a message costs (`talk`), and how long it takes until
//! everybody is back after a cut (`storm`). It works against any WebSocket server: path, first
//! messages and publishes are templates, and a server that speaks first is answered by rules.
//!
//! It shares no code with the server that it measures: a common mistake would hide itself.
//!
//! Four groups, each of which imports only those after it: `scenario` (one file for each question),
//! `run` (threads and their coordinator), `client` (connections), `report` (counts and results).
//! `sys` has the system calls of all. Each thread is an epoll loop over its own connections and has
//! a file table of its own, so the limit of open files counts per thread and not per process.
//!
//! Invariant: threads share two channels and an eventfd, nothing else; a number that was not
//! measured is not printed.

mod client;
mod error;
pub mod report;
mod run;
mod scenario;
mod sys;

use crate::terminal;
pub use error::LoadError;
use report::LoadReport;
pub use scenario::args::LoadArgs;
use scenario::args::Scenario;
use scenario::{fanout, idle, ingest, storm};
use std::process::ExitCode;

/// Carries out a run and says what it found.
pub fn measure(args: LoadArgs) -> Result<LoadReport, LoadError> {
    match args.scenario {
        Scenario::Idle(args) => idle::run(&args),
        Scenario::Fanout(args) => fanout::run(&args),
        Scenario::Ingest(args) => ingest::run(&args),
        Scenario::Storm(args) => storm::run(&args),
    }
}

/// `campanile load`: 0 when the run reached its purpose, 1 when it did not (somebody could not
/// join, something was lost), 2 when it could not be carried out.
pub fn run(args: LoadArgs) -> ExitCode {
    let json = match &args.scenario {
        Scenario::Idle(args) => args.common.json,
        Scenario::Fanout(args) => args.common.json,
        Scenario::Ingest(args) => args.common.json,
        Scenario::Storm(args) => args.common.json,
    };
    match measure(args) {
        Ok(report) => {
            let text = match json {
                true => serde_json::to_string(&report).expect("a report has only string keys"),
                false => report.table(),
            };
            let printed = terminal::print(&text);
            if report.ok { printed } else { ExitCode::FAILURE }
        }
        Err(error) => {
            terminal::tell(&format!("campanile load: {error}\n"));
            ExitCode::from(2)
        }
    }
}
