//! The page at `/`: to try the server in a browser.
//!
//! It talks to the node that served it and to no other, nothing in it comes from elsewhere, and no
//! other site may show it in a frame: what a visitor types into it could be a token.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

const PAGE: &str = include_str!("page.html");

/// The complete answer to a `GET`, or to a `HEAD`.
pub(super) fn response(is_head: bool) -> Vec<u8> {
    let policy = content_security_policy();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n\
         Referrer-Policy: no-referrer\r\nContent-Security-Policy: {policy}\r\n\
         Connection: close\r\n\r\n",
        PAGE.len()
    );
    let body = if is_head { "" } else { PAGE };
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Content Security Policy Level 3: its own style and script by their hashes, and connections to this
/// host. `'self'` covers WebSockets of the same host and port.
fn content_security_policy() -> String {
    let [style, script] = ["style", "script"].map(|element| hash(text_of(element)));
    format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The text of the page's only element of this name.
fn text_of(element: &str) -> &'static str {
    let behind = PAGE.split_once(&format!("<{element}>")).expect("the page has one").1;
    behind.split_once(&format!("</{element}>")).expect("it ends").0
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_style_and_one_script_and_nothing_inline_beside_them() {
        for element in ["<style", "<script"] {
            assert_eq!(PAGE.matches(element).count(), 1, "{element}");
        }
        for attribute in [" style=", " onclick=", " onload=", " onsubmit=", "javascript:"] {
            assert!(!PAGE.contains(attribute), "{attribute} would be refused by the policy");
        }
        let [get, head] = [false, true].map(response);
        assert!(get.starts_with(&head) && get.ends_with(PAGE.as_bytes()));
    }
}
