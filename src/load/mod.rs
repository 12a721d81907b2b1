//! The load generator behind `campanile load`.
//!
//! It asks the four questions that size a host: what does an idle connection cost (`idle`), what
//! does a delivery cost and how late is it (`fanout`), what does it cost to listen to many who talk
//! (`talk`), and how long does it take when everybody comes back at once (`storm`). It speaks to any
//! WebSocket server: path, first messages and publishes are templates, and a server that speaks
//! first is answered by rules ([`client::reply_rules`]).
//!
//! It shares no code with the server it measures. Threads are epoll loops over their own
//! connections ([`run::worker`], [`client::conns`]); a coordinator gives orders and adds up what they say
//! ([`run::fleet`]). Each thread has a file table of its own, so the limit of open files counts per
//! thread and not per process.
//!
//! Invariant: nothing is shared between threads but two channels and a bell; and a number that was
//! not measured is not printed.

mod client;
mod error;
pub mod report;
mod run;
mod scenario;
mod sys;

use crate::terminal;
pub use error::LoadError;
use report::Report;
pub use scenario::args::LoadArgs;
use scenario::args::Scenario;
use scenario::{fanout, idle, ingest, storm};
use std::process::ExitCode;

/// Carries out a run and says what it found.
pub fn measure(args: LoadArgs) -> Result<Report, LoadError> {
    match args.scenario {
        Scenario::Idle(args) => idle::run(&args),
        Scenario::Fanout(args) => fanout::run(&args),
        Scenario::Talk(args) => ingest::run(&args),
        Scenario::Storm(args) => storm::run(&args),
    }
}

/// `campanile load`: 0 when the run reached its purpose, 1 when it did not (somebody could not
/// join, something was lost), 2 when it could not be carried out.
pub fn run(args: LoadArgs) -> ExitCode {
    let json = match &args.scenario {
        Scenario::Idle(args) => args.common.json,
        Scenario::Fanout(args) => args.common.json,
        Scenario::Talk(args) => args.common.json,
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
