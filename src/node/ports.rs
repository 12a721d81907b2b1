//! Binds the two ports before the first thread starts.

use super::error::StartError;
use crate::plan::Plan;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// The ports, once they are certain.
pub(super) struct Ports {
    /// The operators' port, listening.
    pub ops: TcpListener,
    /// The public port, bound and not listening: it holds the number until the end, and the kernel
    /// hands no connection to it. The shards bind the same port (SO_REUSEPORT).
    pub held: Socket,
}

/// Makes sure of both ports, and writes the numbers into the plan where it says 0.
///
/// A port that another process listens on shows only to a socket without SO_REUSEPORT, because two
/// processes of one user may share a port, silently, each getting half of the clients. So one such
/// socket goes first.
pub(super) fn ports(plan: &mut Plan) -> Result<Ports, StartError> {
    let asked = plan.listen;
    let refused = |key: &str, addr: SocketAddr, error: io::Error| {
        StartError::Machine(format!("{key} = {addr}: {}", bind_advice(&error)))
    };
    bound(asked, false).map_err(|error| refused("listen", asked, error))?;
    let held = bound(asked, true).map_err(|error| refused("listen", asked, error))?;
    plan.listen = held.local_addr().map_err(StartError::machine)?.as_socket().unwrap_or(asked);

    let asked = plan.ops_listen;
    let ops = TcpListener::bind(asked).map_err(|error| refused("ops.listen", asked, error))?;
    plan.ops_listen = ops.local_addr().map_err(StartError::machine)?;
    Ok(Ports { ops, held })
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
            "another process listens there (`ss -ltnp` shows which). Write another port, or 0 for any".into()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::ids::NodeId;
    use crate::plan::Machine;
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
            Err(StartError::Machine(message)) => {
                assert!(message.starts_with(&format!("listen = {}", first.listen)), "{message}");
            }
            _ => panic!("two nodes would share the clients of one port, silently"),
        }
    }

    #[test]
    fn an_operators_port_that_is_taken_is_refused_whichever_it_is() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut plan = plan();
        plan.ops_listen = other.local_addr().unwrap();
        match ports(&mut plan) {
            Err(StartError::Machine(message)) => {
                assert!(message.starts_with("ops.listen = 127.0.0.1:"), "{message}");
                assert!(message.contains("or 0 for any"), "{message}");
            }
            _ => panic!("its metrics would be somewhere else than they are looked for"),
        }
    }
}
