//! `campanile doctor`: whether this host is set up for so many connections, and what to change.
//!
//! First all facts are read (`facts.rs`), then judged by a pure function (`checks.rs`), then printed.
//! A fact that cannot be read is a finding too, but not a lack: nobody can fix what may be in order.
//!
//! Invariant: the doctor looks and tries, and changes nothing.

mod checks;
mod facts;
mod request;

pub use request::DoctorRequest;

use crate::terminal;
use checks::{Finding, Verdict, judge};
use facts::{Host, Tried};
use std::fmt::Write as _;
use std::process::ExitCode;

/// Examines the host and prints what it lacks. Exit code 1 when something is missing.
pub fn run(question: &DoctorRequest) -> ExitCode {
    let facts = Host::below("/").facts(Tried::here(&question.config));
    let findings = judge(&facts, question);
    let printed = terminal::print(&report(&findings, question.connections));
    match missing(&findings) {
        0 => printed,
        _ => ExitCode::FAILURE,
    }
}

fn missing(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.verdict == Verdict::Missing).count()
}

fn report(findings: &[Finding], connections: u64) -> String {
    let mut out = format!("This host, for {connections} connections:\n");
    for finding in findings {
        let Finding { what, wanted, found, verdict, fix } = finding;
        let mark = match verdict {
            Verdict::Good => "good   ",
            Verdict::Advice => "advice ",
            Verdict::Missing => "MISSING",
        };
        writeln!(out, "  {mark}  {what}: wanted {wanted}; found {found}")
            .expect("a String takes everything");
        if *verdict != Verdict::Good {
            writeln!(out, "           -> {fix}").expect("a String takes everything");
        }
    }
    out += &match missing(findings) {
        0 => "Nothing is missing.".to_owned(),
        n => format!(
            "Missing: {n}. tuning/apply.sh sets what begins with sysctl for up to two million \
             connections, and undoes it; tuning/README.md has the reasons."
        ),
    };
    out
}

#[cfg(test)]
mod tests;
