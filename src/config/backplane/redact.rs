//! URLs of the backplane as they may be shown.

/// A URL as it may be shown: everything before an `@` is left out, so is the query. Where it
/// is not clear which part is which, as one that is refused may be, no part is shown.
pub fn redact_url(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (hidden, hosts) = match rest.rsplit_once('@') {
        Some((before, _)) if before.contains(['?', '#']) => return format!("{scheme}***"),
        Some((_, hosts)) => ("***@", hosts),
        None => ("", rest),
    };
    let hosts = hosts.split(['?', '#']).next().unwrap_or("");
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let is_plain = |host: &str| {
        host.starts_with('[') || host.split_once(':').is_none_or(|(_, port)| is_port(port))
    };
    match hosts.split('/').next().unwrap_or("").split(',').all(is_plain) {
        true => format!("{scheme}{hidden}{hosts}"),
        false => format!("{scheme}***"),
    }
}
