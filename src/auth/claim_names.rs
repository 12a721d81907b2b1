//! Where in a token the claims stand, and which of them a token must have: identity providers have
//! names of their own, and let claims be added only in places of their own.
//!
//! A claim is named as it stands in the token (`https://example.com/rooms`), or by a path of names
//! with dots between them (`app_metadata.rooms`). A claim with exactly that name comes first.
//!
//! Invariant: pure. Where nothing is configured, a token is read once and not copied.

use serde_json::{Map, Value};

/// As configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimNames {
    /// The name that we use, and the one that the token has.
    renamed: Vec<(&'static str, String)>,
    /// Claims that must be there, with their values.
    required: Vec<(String, String)>,
}

impl ClaimNames {
    /// `name` stands at `path` in the token. `None`: under its own name.
    #[must_use]
    pub fn with(mut self, name: &'static str, path: Option<&str>) -> ClaimNames {
        if let Some(path) = path.filter(|path| *path != name) {
            self.renamed.push((name, path.to_owned()));
        }
        self
    }

    /// Reads what a token must have: `token_use=access, azp=web`. `Err`: what is wrong with it.
    pub fn requiring(mut self, list: &str) -> Result<ClaimNames, String> {
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.split_once('=').map(|(path, value)| (path.trim(), value.trim())) {
                Some((path, value)) if !path.is_empty() && !value.is_empty() => {
                    self.required.push((path.to_owned(), value.to_owned()));
                }
                _ => return Err(format!("{item:?}: write claim=value, such as token_use=access")),
            }
        }
        Ok(self)
    }

    /// Whether tokens are read as they are.
    pub(super) fn is_empty(&self) -> bool {
        self.renamed.is_empty() && self.required.is_empty()
    }

    /// Whether a token lacks something that it must have.
    pub(super) fn is_lacking(&self, claims: &Map<String, Value>) -> bool {
        !self.required.iter().all(|(path, value)| at(claims, path).is_some_and(|it| has(it, value)))
    }

    /// Puts each claim where we look for it. What stands there under our name is not meant for us.
    pub(super) fn rename(&self, claims: &mut Map<String, Value>) {
        let found: Vec<_> =
            self.renamed.iter().map(|(name, path)| (*name, at(claims, path).cloned())).collect();
        for (name, value) in found {
            match value {
                Some(value) => _ = claims.insert(name.to_owned(), value),
                None => _ = claims.remove(name),
            }
        }
    }
}

/// The claim at a path.
fn at<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    at(claims.get(first)?.as_object()?, rest)
}

/// Whether a claim has this value, or is a list that has it.
fn has(claim: &Value, value: &str) -> bool {
    match claim {
        Value::String(text) => text == value,
        Value::Bool(flag) => value == if *flag { "true" } else { "false" },
        Value::Number(number) => number.to_string() == value,
        Value::Array(all) => all.iter().any(|one| !one.is_array() && has(one, value)),
        Value::Null | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn a_claim_is_found_by_its_name_or_by_its_path_and_its_name_comes_first() {
        let claims = map(json!({
            "https://example.com/rooms": 1,
            "app": {"rooms": 2, "more.rooms": 3, "more": {"rooms": 4}},
            "a.b": 5, "a": {"b": 6}, "list": [7],
        }));
        for (path, wanted) in [
            ("https://example.com/rooms", json!(1)),
            ("app.rooms", json!(2)),
            ("app.more.rooms", json!(3)),
            ("a.b", json!(5)),
            ("list", json!([7])),
        ] {
            assert_eq!(at(&claims, path), Some(&wanted), "{path}");
        }
        assert_eq!(
            ["rooms", "app.x", "app.rooms.x", "list.0", ""].map(|it| at(&claims, it)),
            [None; 5]
        );
    }

    #[test]
    fn what_stands_under_our_own_name_is_not_read_where_another_is_configured() {
        let names = ClaimNames::default().with("rooms", Some("app.rooms")).with("sub", Some("sub"));
        let mut claims = map(json!({"sub": "ann", "rooms": ["**"], "app": {"rooms": ["a"]}}));
        names.rename(&mut claims);
        assert_eq!((&claims["rooms"], &claims["sub"]), (&json!(["a"]), &json!("ann")));
        let mut without = map(json!({"rooms": ["**"]}));
        names.rename(&mut without);
        assert_eq!(without.get("rooms"), None);
        assert!(ClaimNames::default().with("sub", Some("sub")).is_empty());
    }

    #[test]
    fn what_a_token_must_have_is_a_value_or_one_of_a_list() {
        let names =
            ClaimNames::default().requiring("use=access, groups=staff,ok=true,n=7").unwrap();
        let good = json!({"use": "access", "groups": ["a", "staff"], "ok": true, "n": 7});
        assert!(!names.is_lacking(&map(good.clone())));
        for (claim, value) in [
            ("use", json!("id")),
            ("groups", json!(["a", ["staff"]])),
            ("ok", json!(null)),
            ("n", json!({})),
        ] {
            let mut bad = map(good.clone());
            bad.insert(claim.to_owned(), value);
            assert!(names.is_lacking(&bad), "{claim}");
        }
        assert!(names.is_lacking(&map(json!({}))));
        for wrong in ["use", "=x", "use=", "a=b,c"] {
            assert!(ClaimNames::default().requiring(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ClaimNames::default().requiring(" , "), Ok(ClaimNames::default()));
    }
}
