//! The key of the operators' API, and which of its paths the public port serves for requests with it.

/// Whether an `Authorization` header shows `key` as a bearer token (RFC 6750 §2.1).
pub fn is_shown(authorization: Option<&str>, key: &str) -> bool {
    let shown = authorization.and_then(|value| {
        let (scheme, shown) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(shown.trim())
    });
    shown.is_some_and(|shown| is_same(shown.as_bytes(), key.as_bytes()))
}

/// Compares in a time that tells nothing of where two secrets differ.
fn is_same(shown: &[u8], key: &[u8]) -> bool {
    let differing =
        shown.iter().zip(key).fold(0u8, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
    differing == 0 && shown.len() == key.len()
}

/// Whether `path` is one of `public` or below it.
pub fn is_public(path: &str, public: &[String]) -> bool {
    public.iter().any(|one| {
        path.strip_prefix(one.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_path_opens_itself_and_what_is_below() {
        let public = ["/v1/publish".to_owned(), "/v1/rooms".to_owned()];
        for path in ["/v1/publish", "/v1/publish/batch", "/v1/rooms/a/history"] {
            assert!(is_public(path, &public), "{path}");
        }
        for path in ["/v1/publisher", "/v1/stats", "/metrics", "/v1", "/", "//v1/publish"] {
            assert!(!is_public(path, &public), "{path}");
        }
        assert!(!is_public("/v1/publish", &[]));
    }
}
