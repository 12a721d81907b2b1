//! The addresses of the two ports as URLs that a browser and curl on this machine can open.

use crate::plan::Plan;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

impl Plan {
    /// The page for trying things out, if it is served.
    pub fn page_url(&self) -> Option<String> {
        self.page.then(|| format!("http://{}/", reachable(self.listen)))
    }

    /// What an operator may ask first of the API. Without a key it answers this machine.
    pub fn api_url(&self) -> String {
        format!("http://{}/v1/stats", reachable(self.ops_listen))
    }
}

/// An address on which every interface listens is no address to connect to.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_an_address_that_can_be_connected_to() {
        for (listens, url) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("192.0.2.7:1", "192.0.2.7:1"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), url);
        }
    }
}
