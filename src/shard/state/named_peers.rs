//! Addresses of clients that come through proxies, by the index of their connection.
//!
//! A direct connection has none: its socket has the peer's address. One whose proxy has named the
//! client costs [`PACKED_BYTES`], in pages like those of the slab: where neighbours have an
//! address the table is dense, and a page is freed with its last address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const PAGE: usize = 1024;
const PACKED_BYTES: usize = 18;

// A connection whose client a proxy has named may cost 24 bytes more.
const _: () = assert!(size_of::<Page>() <= 24 * PAGE);

/// 16 bytes of address, IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2), and the port. All zeros: none.
type Packed = [u8; PACKED_BYTES];

struct Page {
    used: usize,
    addresses: [Packed; PAGE],
}

/// The table.
#[derive(Default)]
pub(in crate::shard) struct NamedPeers {
    pages: Vec<Option<Box<Page>>>,
}

impl NamedPeers {
    /// Notes an address. The unspecified one with port 0 is none.
    pub(in crate::shard) fn insert(&mut self, index: u32, peer: SocketAddr) {
        self.remove(index);
        let packed = pack(peer);
        if packed == Packed::default() {
            return;
        }
        let (page, place) = (index as usize / PAGE, index as usize % PAGE);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| {
            Box::new(Page { used: 0, addresses: [Packed::default(); PAGE] })
        });
        page.addresses[place] = packed;
        page.used += 1;
    }

    /// The address at `index`, if one was noted.
    pub(in crate::shard) fn get(&self, index: u32) -> Option<SocketAddr> {
        let page = self.pages.get(index as usize / PAGE)?.as_ref()?;
        unpack(page.addresses[index as usize % PAGE])
    }

    /// Forgets an address.
    pub(in crate::shard) fn remove(&mut self, index: u32) -> Option<SocketAddr> {
        let slot = self.pages.get_mut(index as usize / PAGE)?;
        let page = slot.as_mut()?;
        let peer = unpack(std::mem::take(&mut page.addresses[index as usize % PAGE]))?;
        page.used -= 1;
        if page.used == 0 {
            *slot = None;
        }
        Some(peer)
    }
}

fn pack(peer: SocketAddr) -> Packed {
    let address = match peer.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut packed = Packed::default();
    packed[..16].copy_from_slice(&address.octets());
    packed[16..].copy_from_slice(&peer.port().to_be_bytes());
    packed
}

fn unpack(packed: Packed) -> Option<SocketAddr> {
    if packed == Packed::default() {
        return None;
    }
    let (address, port) = packed.split_first_chunk::<16>().expect("it has 18 bytes");
    let address = Ipv6Addr::from(*address).to_canonical();
    Some(SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{AnonymousSecret, Identity};
    use crate::ids::{ConnId, NodeId, ShardId};
    use crate::policy::limits::Limits;
    use crate::policy::rights::Rights;
    use crate::protocol::dialect::{Dialect, Encoding};
    use crate::shard::conn::CloseReason;
    use crate::shard::delivery::batch::SendBatch;
    use crate::shard::{Opening, Shard, ShardConfig};
    use bytes::Bytes;
    use std::collections::HashMap;

    fn shard() -> Shard {
        let (id, node, limits) = (ShardId(0), NodeId(1), Limits::TINY);
        let (node_name, namespaces) = ("n".into(), Default::default());
        Shard::new(ShardConfig {
            id,
            node,
            node_name,
            limits,
            namespaces,
            anonymous_secret: AnonymousSecret::new([0; 16]),
        })
    }

    fn open(shard: &mut Shard) -> ConnId {
        let conn = shard.handle_accept(7, 0).unwrap();
        let identity = Identity {
            user: None,
            rights: Rights::NONE,
            expires_unix_s: None,
            grants: None,
            info: None,
            mark: None,
        };
        let (response, encoding) = (Bytes::from_static(b"101"), Encoding::of(Dialect::Echo));
        shard.handle_open(conn, Opening { identity, response, rooms: Vec::new(), encoding });
        conn
    }

    #[test]
    fn an_address_stays_with_its_connection_also_in_another_shard_and_with_nobody_else() {
        let (mut here, mut there) = (shard(), shard());
        let named = "192.0.2.7:5000".parse().unwrap();
        let peer = Some(named);
        let conn = open(&mut here);
        assert_eq!(here.named_peer(conn), None);
        here.handle_named_peer(conn, named);
        assert_eq!(here.named_peer(conn), peer);
        let session = here.take_session(conn, &SendBatch::default()).unwrap();
        assert_eq!((here.named_peer(conn), session.peer), (None, peer));
        let moved = there.put_session(Box::new(session), 8, 0).unwrap();
        assert_eq!(there.named_peer(moved), peer);
        there.handle_peer_gone(moved, CloseReason::Gone);
        assert!(there.poll_closed().is_some());
        let next = open(&mut there);
        assert_eq!(next.0.index, moved.0.index, "it has the same place");
        assert_eq!((there.named_peer(moved), there.named_peer(next)), (None, None));
    }

    #[test]
    fn it_agrees_with_a_map_and_keeps_no_page_without_an_address() {
        let (mut peers, mut model) = (NamedPeers::default(), HashMap::new());
        let mut seed = 9u64;
        for step in 0..20_000u32 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let index = (seed >> 40) as u32 % 5000;
            if seed >> 63 == 0 {
                let ip = if step % 2 == 0 {
                    IpAddr::from((step + 1).to_be_bytes())
                } else {
                    IpAddr::from((u128::from(seed) << 64).to_be_bytes())
                };
                let peer = SocketAddr::new(ip, step as u16);
                peers.insert(index, peer);
                model.insert(index, peer);
            } else {
                assert_eq!(peers.remove(index), model.remove(&index));
            }
            assert_eq!(peers.get(index), model.get(&index).copied());
        }
        for index in 0..5000 {
            assert_eq!(peers.remove(index), model.remove(&index));
        }
        assert!(peers.pages.iter().all(Option::is_none));
    }
}
