//! The load generator: `campanile load`.
//!
//! It measures what sizes a host: the cost of an idle connection (`idle`), the cost and latency of
//! a delivery (`fanout`), the cost of an incoming message (`ingest`), and the time until all
//! clients are connected again after all of them were cut (`storm`). It works with any WebSocket
//! server: path, first messages and publishes are templates, and rules reply to a server that
//! sends the first message.
//!
//! It shares no code with the server that it measures, so a mistake of the server's codec cannot
//! cancel itself out.
//!
//! Four groups, each of which imports only those after it: `scenario` (what is measured), `run`
//! (worker threads and their coordinator), `client` (connections), `report` (counts and results).
//! `sys` has the system calls for all of them. Each worker is an epoll loop over its own
//! connections and has a file table of its own, so the limit of open files counts per thread.
//!
//! Invariant: worker threads share channels and eventfds, nothing else. A number that was not
//! measured is absent from the report.

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

/// Carries out a run.
pub fn measure(args: LoadArgs) -> Result<LoadReport, LoadError> {
    match args.scenario {
        Scenario::Idle(args) => idle::run(&args),
        Scenario::Fanout(args) => fanout::run(&args),
        Scenario::Ingest(args) => ingest::run(&args),
        Scenario::Storm(args) => storm::run(&args),
    }
}

/// `campanile load`. Prints the report, as a table or as one JSON object, and returns the exit
/// code: 0 if the run reached its purpose, 1 if not (a connection did not join, a message was
/// lost), 2 if it could not be carried out.
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
            terminal::print_error(&format!("campanile load: {error}\n"));
            ExitCode::from(2)
        }
    }
}
