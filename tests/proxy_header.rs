//! The PROXY header against a writer of its own, in every cut and every truncation, and spoiled.

#[path = "common/proxy_verdict.rs"]
mod proxy_verdict;

use campanile::net::upgrade::proxy_header::{ProxyHeader, V1_BYTES_MAX, V2_REST_BYTES_MAX, parse};
use proptest::prelude::*;
use proxy_verdict::check_verdict_stays;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];

/// A header of version 1.
fn v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

/// A header of version 2 with whatever follows the addresses.
fn v2(command: u8, family: u8, addresses: &[u8], tlvs: &[u8]) -> Vec<u8> {
    let length = (addresses.len() + tlvs.len()) as u16;
    [&SIGNATURE, &[0x20 | command, family][..], &length.to_be_bytes(), addresses, tlvs].concat()
}

/// The address block of version 2.
fn block(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    [
        octets(source.ip()),
        octets(destination.ip()),
        source.port().to_be_bytes().to_vec(),
        destination.port().to_be_bytes().to_vec(),
    ]
    .concat()
}

fn whole(header: &[u8], source: Option<SocketAddr>) -> ProxyHeader {
    ProxyHeader::Whole { bytes: header.len(), source }
}

/// Every beginning of `header` is incomplete, and with anything behind it it is what it is.
fn check_every_cut(header: &[u8], source: Option<SocketAddr>, behind: &[u8]) {
    for cut in 0..header.len() {
        assert_eq!(parse(&header[..cut]), Ok(ProxyHeader::Incomplete), "{cut} of {header:02x?}");
    }
    assert_eq!(parse(header), Ok(whole(header, source)), "{header:02x?}");
    assert_eq!(parse(&[header, behind].concat()), Ok(whole(header, source)), "{header:02x?}");
}

fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = any::<([u8; 4], [u8; 4], u16, u16)>()
        .prop_map(|(a, b, p, q)| ((Ipv4Addr::from(a), p).into(), (Ipv4Addr::from(b), q).into()));
    let v6 = any::<([u8; 16], [u8; 16], u16, u16)>()
        .prop_map(|(a, b, p, q)| ((Ipv6Addr::from(a), p).into(), (Ipv6Addr::from(b), q).into()));
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn a_good_header_is_read_in_every_cut(
        (source, destination) in addresses(),
        tlvs in prop::collection::vec(any::<u8>(), 0..200),
        behind in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        check_every_cut(&v1(source, destination), Some(source), &behind);
        let family = if source.is_ipv4() { 0x11 } else { 0x21 };
        let block = block(source, destination);
        check_every_cut(&v2(1, family, &block, &tlvs), Some(source), &behind);
        check_every_cut(&v2(0, family, &block, &tlvs), None, &behind);
    }

    #[test]
    fn random_bytes_break_nothing_and_a_verdict_stays(
        start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY UNKNOWN", &SIGNATURE]),
        command in any::<u8>(),
        bytes in prop::collection::vec(any::<u8>(), 0..700),
    ) {
        let stream = [start, &[command], &bytes].concat();
        check_verdict_stays(&stream);
    }

    #[test]
    fn a_header_that_was_spoiled_breaks_nothing(
        (source, destination) in addresses(),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
    ) {
        let family = if source.is_ipv4() { 0x11 } else { 0x21 };
        for mut header in [v1(source, destination), v2(1, family, &block(source, destination), &[])] {
            let at = at.index(header.len());
            header[at] = to;
            check_verdict_stays(&header);
        }
    }
}

#[test]
fn a_health_check_and_an_unknown_connection_name_nobody() {
    check_every_cut(b"PROXY UNKNOWN\r\n", None, b"GET");
    check_every_cut(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None, b"GET");
    check_every_cut(&v2(0, 0, &[], &[]), None, b"GET");
    check_every_cut(&v2(0, 0x77, &[], &[1, 2, 3]), None, b"GET");
    check_every_cut(&v2(1, 0, &[], &[9]), None, b"GET");
    check_every_cut(&v2(1, 0x31, &[0; 216], &[]), None, b"GET");
}

#[test]
fn what_is_no_header_is_told_at_its_first_byte_that_differs() {
    for text in ["GET /ws", "POST /", "PUT /", "PROXX ", "PROXy ", "\r\n\r\n\0\r\nQUIX", "x", "\0"]
    {
        let absent =
            (1..=text.len()).find(|cut| parse(&text.as_bytes()[..*cut]) == Ok(ProxyHeader::Absent));
        let shared = |start: &[u8]| {
            text.bytes().zip(start).take_while(|(byte, other)| byte == *other).count()
        };
        let expected = 1 + shared(b"PROXY ").max(shared(&SIGNATURE));
        assert_eq!(absent, Some(expected), "{text:?}");
    }
    assert_eq!(parse(b""), Ok(ProxyHeader::Incomplete));
}

#[test]
fn a_broken_header_is_malformed() {
    let lines = [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
        "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n\r\n",
        "PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
    ];
    for line in lines {
        assert!(parse(line.as_bytes()).is_err(), "{line:?}");
    }
    let block = [0; 36];
    for (command, family, addresses) in [
        (2, 0x11, &block[..12]),
        (0x11, 0x11, &block[..12]),
        (1, 0x12, &block[..12]),
        (1, 0x22, &block[..36]),
        (1, 0x01, &block[..12]),
        (1, 0x41, &block[..12]),
        (1, 0x11, &block[..11]),
        (1, 0x21, &block[..35]),
        (1, 0x31, &block[..36]),
    ] {
        assert!(parse(&v2(command, family, addresses, &[])).is_err(), "{command} {family:#x}");
    }
}

#[test]
fn lengths_are_bounded() {
    let line = |bytes: usize| {
        let mut line = b"PROXY UNKNOWN ".to_vec();
        line.resize(bytes - 2, b'x');
        [line, b"\r\n".to_vec()].concat()
    };
    assert_eq!(parse(&line(V1_BYTES_MAX)), Ok(whole(&line(V1_BYTES_MAX), None)));
    assert!(parse(&line(V1_BYTES_MAX + 1)).is_err());
    assert!(parse(&line(V1_BYTES_MAX + 1)[..V1_BYTES_MAX]).is_err(), "no byte more is waited for");
    let longest = v2(0, 0, &[], &[0; V2_REST_BYTES_MAX]);
    assert_eq!(parse(&longest), Ok(whole(&longest, None)));
    let longer = v2(0, 0, &[], &[0; V2_REST_BYTES_MAX + 1]);
    assert!(parse(&longer[..16]).is_err(), "its length alone refuses it");
}
