//! The PROXY header: a verdict stays, however the stream goes on, needs no more bytes than the longest
//! header has, and an address that was read is read again from a header that names it.

#[path = "../../common/proxy_verdict.rs"]
mod proxy_verdict;

use campanile::net::upgrade::proxy_header::{ProxyHeader, parse};

/// The bytes as they come.
pub fn check(input: &[u8]) {
    let stream = &input[..input.len().min(700)];
    proxy_verdict::check_verdict_stays(stream);
    if let Ok(ProxyHeader::Whole { bytes, source }) = parse(stream) {
        let after = [&stream[..bytes], b"GET / HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(
            parse(&after),
            Ok(ProxyHeader::Whole { bytes, source }),
            "what follows is another's"
        );
        let Some(source) = source else { return };
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (address, port) = (source.ip(), source.port());
        let line = format!("PROXY {family} {address} {address} {port} {port}\r\n");
        let again = ProxyHeader::Whole { bytes: line.len(), source: Some(source) };
        assert_eq!(parse(line.as_bytes()), Ok(again));
    }
}
