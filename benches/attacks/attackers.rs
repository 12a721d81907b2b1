//! The process of the attackers.

use super::kinds::Attack;
use super::pump;
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts it beside this process, on the same core. At the lowest priority: what is measured is what
/// the server does to its other clients, not what one process of this core does to another.
pub(super) fn spawn(
    attack: &Attack,
    server: SocketAddr,
    length: Duration,
    many: bool,
) -> io::Result<Child> {
    let own = std::env::current_exe()?;
    let seconds = length.as_secs().to_string();
    Command::new("nice")
        .args(["-n", "19"])
        .arg(own)
        .args(["attack", attack.name, &server.to_string(), &seconds])
        .arg(if many { "many" } else { "one" })
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
}

/// Is that process. `many`: each attacker has an address of its own.
pub(super) fn run(
    attack: &Attack,
    server: SocketAddr,
    length: Duration,
    many: bool,
) -> io::Result<()> {
    let totals = pump::run(attack, server, Instant::now() + length, many);
    let pump::Totals { connects, refused, closed, bytes } = totals;
    println!("{connects} {refused} {closed} {bytes}");
    Ok(())
}
