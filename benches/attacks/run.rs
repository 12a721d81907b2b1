//! What the attackers of one address do to a bystander on the same node: `benches/attacks.sh`.
//!
//! A table, a row an attack. The server is pinned to core 0; this program, and the attackers as a
//! process of their own at the lowest priority, to core 1 by the script. Each row has two halves of the
//! same length, with the same bystander on the same server: first the attackers attack that server,
//! then another one, which runs on core 0 as well but only when the first leaves it idle. So the
//! second half is the baseline: it contains what attackers cost the bystander's client and the kernel,
//! and none of what the attacked server does.
//!
//! Each row has fresh servers.

mod attackers;
mod bystander;
mod kinds;
mod pump;
mod report;
mod server;
mod soak;
mod wire;

use kinds::{ATTACKS, Attack};
use report::Row;
use server::Server;
use std::error::Error;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// For how long the attacked server may end what it was doing before its memory is read again.
const REST: Duration = Duration::from_secs(1);

/// What is to be measured.
struct Options {
    server: PathBuf,
    length: Duration,
    /// How often each attack and its baseline are measured, in turn.
    rounds: u32,
    only: Option<String>,
    /// All that want memory at once, for minutes.
    is_soak: bool,
    /// `limits.memory_bytes_max` of the server.
    bound_mib: u64,
    server_flags: Vec<OsString>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("attack") => {
            let mut word = || words.next().ok_or("attack NAME ADDRESS SECONDS");
            let (name, address, seconds) = (word()?, word()?, word()?);
            let many = word()? == "many";
            let attack =
                ATTACKS.iter().find(|attack| attack.name == name).ok_or("no such attack")?;
            attackers::run(attack, address.parse()?, Duration::from_secs(seconds.parse()?), many)?;
            Ok(())
        }
        Some("--server") => {
            let options = options(words)?;
            if options.is_soak { soak::run(&options) } else { measure_all(&options) }
        }
        _ => Err("use benches/attacks.sh".into()),
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
    let server = words.next().ok_or("--server wants a path")?.into();
    let mut options = Options {
        server,
        length: Duration::from_secs(5),
        rounds: 1,
        only: None,
        is_soak: false,
        bound_mib: 1024,
        server_flags: Vec::new(),
    };
    while let Some(word) = words.next() {
        if word == "--" {
            options.server_flags = words.map(OsString::from).collect();
            break;
        }
        let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
        match word.as_str() {
            "--seconds" => options.length = Duration::from_secs(value.parse()?),
            "--soak-minutes" => {
                options.length = Duration::from_secs(60 * value.parse::<u64>()?);
                options.is_soak = true;
            }
            "--rounds" => options.rounds = value.parse()?,
            "--only" => options.only = Some(value),
            "--bound-mib" => options.bound_mib = value.parse()?,
            _ => return Err(format!("no such option: {word}").into()),
        }
    }
    Ok(options)
}

fn measure_all(options: &Options) -> Result<(), Box<dyn Error>> {
    let is_wanted =
        |attack: &&Attack| options.only.as_deref().is_none_or(|only| attack.name == only);
    let wanted: Vec<&Attack> = ATTACKS.iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = ATTACKS.iter().map(|attack| attack.name).collect();
        return Err(format!("--only takes one of {}", names.join(", ")).into());
    }
    report::write_quiet(&measure_quiet(options)?);
    report::write_head();
    let mut held = 0;
    for attack in &wanted {
        let row = measure(attack, options)?;
        held += usize::from(row.holds(options.bound_mib));
        report::write_row(&row, options.bound_mib);
    }
    println!("\n{held} of {} attacks hold.", wanted.len());
    Ok(())
}

fn measure_quiet(options: &Options) -> Result<bystander::Latencies, Box<dyn Error>> {
    let server = Server::start(&options.server, &options.server_flags, false)?;
    let bystander = bystander::join(server.address)?;
    Ok(bystander.measure(options.length))
}

fn measure(attack: &'static Attack, options: &Options) -> Result<Row, Box<dyn Error>> {
    let bound = (options.bound_mib << 20).to_string();
    let mut flags = vec!["--limits-memory-bytes-max".into(), bound.into()];
    flags.extend(options.server_flags.iter().cloned());
    let server = Server::start(&options.server, &flags, false)?;
    let other = Server::start(&options.server, &flags, true)?;
    let bystander = bystander::join(server.address)?;
    let rss_before = server.rss_mib();
    let visits_before = server.visits();
    let mut row = Row::new(attack);
    for _ in 0..options.rounds {
        let attackers = attackers::spawn(attack, server.address, options.length, false)?;
        row.attacked.add(bystander.measure(options.length));
        row.add_sent(&attackers.wait_with_output()?.stdout)?;
        let attackers = attackers::spawn(attack, other.address, options.length, false)?;
        row.baseline.add(bystander.measure(options.length));
        attackers.wait_with_output()?;
    }
    std::thread::sleep(REST);
    row.visits = server.visits().since(&visits_before);
    row.rss = [rss_before, server.rss_peak_mib(), server.rss_mib()];
    row.is_alive = server.is_alive();
    Ok(row)
}

/// The first port that nobody listens on, of a range from which the kernel takes none for clients.
fn free_address() -> std::io::Result<SocketAddr> {
    let mut last = std::io::ErrorKind::AddrInUse.into();
    for port in 21_000..22_000 {
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return listener.local_addr(),
            Err(error) => last = error,
        }
    }
    Err(last)
}
