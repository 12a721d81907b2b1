//! The steps of a start, each one function, in the order in which `main` takes them.
//!
//! What can be wrong with a host or a configuration is found here, before the first thread, and
//! said so that the operator can mend it. After that, a thread that ends without being asked to
//! ends the process: a node that has lost a shard must not look alive.

use crate::config::{Config, ConfigErrors, LogFormat};
use crate::ids::NodeId;
use crate::link::health::{Health, NotReady};
use crate::plan::{BackplanePlan, Machine, Notice, Plan, Scheduling, ShardPlan};
use crate::{sys, terminal};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use socket2::{Domain, Protocol, Socket, Type};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Why a start came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// The configuration does not fit this machine. Exit code 2.
    Config(ConfigErrors),
    /// The machine does not give what is needed. Exit code 1.
    Machine(String),
}

impl Failure {
    /// The machine does not give what is needed.
    pub fn machine(error: io::Error) -> Failure {
        Failure::Machine(error.to_string())
    }

    /// Tells the operator; answers the exit code.
    pub fn tell(self) -> ExitCode {
        match self {
            Failure::Config(errors) => {
                terminal::tell(&errors.to_string());
                ExitCode::from(2)
            }
            Failure::Machine(message) => {
                terminal::tell(&format!("campanile: {message}.\n"));
                ExitCode::FAILURE
            }
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        Failure::Config(errors)
    }
}

/// Starts the log, on stderr, best effort ([`terminal`]). Libraries are heard from warnings on,
/// whatever our own level is: the debug lines of an HTTP library are of no use to an operator.
pub fn log(config: &Config) {
    let ours = &config.log_level;
    let theirs = if ours == "error" { "error" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::new(format!("{theirs},campanile={ours}"));
    // It reports a line that it cannot write with `eprintln!`, which panics.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// One event of the log, which is written as a whole.
struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        terminal::log_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A panic anywhere ends the process, in every build, after the message and with a core dump. std's
/// own hook would block for ever on a standard error that is a full pipe; this one waits a second.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => trace.to_string(),
            _ => "RUST_BACKTRACE=1 shows how it came there\n".to_owned(),
        };
        terminal::tell(&format!(
            "\nthread '{name}' {panic}\n{trace}campanile: this is a bug; the process ends, so that no \
             half of it looks alive\n"
        ));
        std::process::abort();
    }));
}

/// What this machine is. Raises the limit on open files as far as it goes.
pub fn machine() -> Result<Machine, Failure> {
    let nofile = sys::raise_nofile().map_err(Failure::machine)?;
    let mut node = [0u8; 8];
    getrandom::fill(&mut node)
        .map_err(|error| Failure::Machine(format!("the kernel gives no random bytes: {error}")))?;
    Ok(Machine {
        node: NodeId(u64::from_ne_bytes(node)),
        cores: sys::available_cores().map_err(Failure::machine)?,
        nofile: nofile.soft,
        memory_bytes: sys::memory_bytes().ok(),
    })
}

/// Logs what the plan has to say.
pub fn say(notices: &[Notice]) {
    for notice in notices {
        match notice.is_warning {
            true => tracing::warn!("{}", notice.text),
            false => tracing::info!("{}", notice.text),
        }
    }
}

/// Makes sure that what the plan names as files can be read, before a thread meets it.
pub fn files(plan: &Plan) -> Result<(), Failure> {
    let BackplanePlan::Redis(redis) = &plan.backplane else { return Ok(()) };
    let Some(path) = &redis.tls_ca_file else { return Ok(()) };
    let refused = |why: String| {
        let advice = "Write the path of a file with certificates in PEM, or leave it out";
        Failure::Machine(format!("redis.tls_ca_file = {path}: {why}. {advice}"))
    };
    let text = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(refused("no certificate is in it".into()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(refused(format!("{error:?}"))),
    }
}

/// Ports tried after the default of `ops.listen`.
const OPS_PORTS_TRIED: usize = 32;

/// The ports, once they are certain.
pub struct Ports {
    /// The operators' port, listening.
    pub ops: TcpListener,
    /// The public port, bound and not listening: it holds the number until the end, and the kernel
    /// hands no connection to it. The shards bind theirs beside it (SO_REUSEPORT).
    pub held: Socket,
}

/// Makes sure of both ports, and writes the numbers into the plan where it says 0.
///
/// A port that another process listens on shows only to a socket without SO_REUSEPORT, because two
/// processes of one user may share a port, silently, each getting half of the clients. So one such
/// socket goes first.
pub fn ports(plan: &mut Plan) -> Result<Ports, Failure> {
    let asked = plan.listen;
    let refused = |key: &str, addr: SocketAddr, error: io::Error| {
        Failure::Machine(format!("{key} = {addr}: {}", bind_advice(&error)))
    };
    bound(asked, false).map_err(|error| refused("listen", asked, error))?;
    let held = bound(asked, true).map_err(|error| refused("listen", asked, error))?;
    plan.listen = held.local_addr().map_err(Failure::machine)?.as_socket().unwrap_or(asked);

    let asked = plan.ops_listen;
    let ops = ops_port(asked).map_err(|error| refused("ops.listen", asked, error))?;
    plan.ops_listen = ops.local_addr().map_err(Failure::machine)?;
    Ok(Ports { ops, held })
}

/// Binds the operators' port. A second node on one machine that says nothing of it gets the next
/// free one after the default, and the log says which; an address that is not the default is kept
/// to.
fn ops_port(asked: SocketAddr) -> io::Result<TcpListener> {
    let first = TcpListener::bind(asked);
    let is_taken = matches!(&first, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
    if !is_taken || asked != Config::default().ops_listen {
        return first;
    }
    for port in (asked.port() + 1..).take(OPS_PORTS_TRIED) {
        if let Ok(listener) = TcpListener::bind(SocketAddr::new(asked.ip(), port)) {
            tracing::warn!(
                "ops.listen is {}:{port}: another process listens on its default, {asked}",
                asked.ip()
            );
            return Ok(listener);
        }
    }
    first
}

fn bound(addr: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a former run that linger in TIME_WAIT are no hindrance.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn bind_advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there (`ss -ltnp` tells which). Write another port".into()
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted. Write a port from 1024 on, or grant CAP_NET_BIND_SERVICE".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address. Write one that `ip addr` shows, or 0.0.0.0"
                .into()
        }
        _ => error.to_string(),
    }
}

/// What a shard's thread does first: its core, and its table of open files.
pub fn settle_shard(plan: &Plan, shard: &ShardPlan) -> io::Result<()> {
    settle(plan.scheduling, shard.core.as_slice());
    if plan.private_fd_tables {
        sys::unshare_files()?;
    }
    Ok(())
}

/// Pins the calling thread and says how it is scheduled. Not being allowed to costs speed, not
/// correctness.
pub fn settle(scheduling: Scheduling, cores: &[usize]) {
    if let Err(error) = sys::pin_to_cores(cores) {
        tracing::warn!(?cores, %error, "a thread could not be pinned");
    }
    if scheduling == Scheduling::Batch
        && let Err(error) = sys::schedule_in_batches()
    {
        tracing::warn!(%error, "a thread could not be scheduled in batches");
    }
}

/// What the backplane's thread does first: the same, and goes before the shards. Where there are
/// fewer cores than threads, those many are not to keep the one waiting that all of them wait for.
pub fn settle_backplane(plan: &Plan) {
    settle(plan.scheduling, &plan.other_cores);
    if plan.backplane_priority > 0
        && let Err(error) = sys::go_first(plan.backplane_priority)
    {
        tracing::info!(%error, "backplane_priority: the backplane's thread goes as the others do");
    }
}

/// Starts a thread whose end, unless the node drains, is the end of the process.
pub fn thread(
    name: String,
    health: &Arc<Health>,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, Failure> {
    let health = health.clone();
    let builder = std::thread::Builder::new().name(name.clone());
    let spawned = builder.spawn({
        let name = name.clone();
        move || match run() {
            Ok(()) if health.ready(0) == Err(NotReady::Draining) => {}
            Ok(()) => end_loudly(&name, "it ended without being told to"),
            Err(error) => end_loudly(&name, &error.to_string()),
        }
    });
    spawned.map_err(|error| Failure::Machine(format!("thread {name} did not start: {error}")))
}

fn end_loudly(thread: &str, why: &str) {
    tracing::error!(thread, why, "a thread has failed; the process ends");
    terminal::tell(&format!("campanile: {thread}: {why}\n"));
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    fn plan() -> Plan {
        let machine = Machine { node: NodeId(1), cores: vec![0], nofile: 9999, memory_bytes: None };
        let mut plan = crate::plan::resolve(&Config::default(), &machine).unwrap().plan;
        plan.listen = "127.0.0.1:0".parse().unwrap();
        plan.ops_listen = "127.0.0.1:0".parse().unwrap();
        plan
    }

    #[test]
    fn shards_listen_beside_the_held_port_and_every_client_reaches_one_of_them() {
        let mut plan = plan();
        let ports = ports(&mut plan).unwrap();
        assert_ne!(plan.listen.port(), 0);
        assert_eq!(plan.ops_listen, ports.ops.local_addr().unwrap());
        let shard = bound(plan.listen, true).unwrap();
        shard.listen(16).unwrap();
        for _ in 0..16 {
            let mut client = TcpStream::connect(plan.listen).unwrap();
            drop(shard.accept().unwrap());
            assert_eq!(client.read(&mut [0u8; 1]).unwrap(), 0, "it was this shard's");
        }
    }

    #[test]
    fn a_second_node_on_a_port_that_is_listened_on_is_refused() {
        let mut first = plan();
        let _held = ports(&mut first).unwrap();
        let shard = bound(first.listen, true).unwrap();
        shard.listen(16).unwrap();
        let mut second = plan();
        second.listen = first.listen;
        match ports(&mut second) {
            Err(Failure::Machine(message)) => {
                assert!(message.starts_with(&format!("listen = {}", first.listen)), "{message}");
            }
            _ => panic!("two nodes would share the clients of one port, silently"),
        }
    }

    #[test]
    fn only_the_default_of_the_operators_port_gives_way() {
        let default = Config::default().ops_listen;
        // Ours or, if somebody else has it, theirs: taken in any case.
        let _taken = TcpListener::bind(default);
        let next = ops_port(default).unwrap().local_addr().unwrap();
        assert_eq!(next.ip(), default.ip());
        assert!(next.port() > default.port());
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let asked = other.local_addr().unwrap();
        assert_eq!(ops_port(asked).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
