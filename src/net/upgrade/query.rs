//! The query of the WebSocket's path.

use crate::net::upgrade::reject::RejectReason;
use percent_encoding::percent_decode;

/// What a client may say in the URL.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// `token`. Two that differ are refused.
    pub token: Option<String>,
    /// Every `room_id` once, sorted.
    pub rooms: Vec<String>,
}

impl Query {
    /// Reads `application/x-www-form-urlencoded` (WHATWG URL §5.1), but for bytes that are not UTF-8:
    /// those are refused, because a name with replacement characters would be another name.
    pub(super) fn read(text: &str) -> Result<Query, RejectReason> {
        let mut query = Query::default();
        for pair in text.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match &*decode(key)? {
                "token" => {
                    let token = decode(value)?;
                    if query.token.as_ref().is_some_and(|other| *other != token) {
                        return Err(RejectReason::TwoTokens);
                    }
                    query.token = Some(token);
                }
                "room_id" => query.rooms.push(decode(value)?),
                _ => {}
            }
        }
        query.rooms.sort_unstable();
        query.rooms.dedup();
        Ok(query)
    }
}

fn decode(text: &str) -> Result<String, RejectReason> {
    let spaced = text.replace('+', " ");
    let bytes: Vec<u8> = percent_decode(spaced.as_bytes()).collect();
    String::from_utf8(bytes).map_err(|_| RejectReason::QueryNotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tokens_are_decoded_and_each_room_counts_once() {
        let query = Query::read("room_id=b&room_id=a%20b&token=x&room_id=b&other=%41&x").unwrap();
        assert_eq!(query.rooms, ["a b", "b"]);
        assert_eq!(query.token.as_deref(), Some("x"));
        assert_eq!(Query::read("").unwrap(), Query::default());
        assert_eq!(Query::read("token=a&token=b"), Err(RejectReason::TwoTokens));
        assert!(Query::read("token=a&token=a").is_ok());
        assert_eq!(Query::read("token=a+b%2B").unwrap().token.as_deref(), Some("a b+"));
        assert_eq!(Query::read("room_id=%zz").unwrap().rooms, ["%zz"], "as WHATWG has it");
    }

    #[test]
    fn what_is_not_utf8_is_refused_and_not_replaced() {
        for text in ["room_id=%ff", "token=%c3", "room_id=a&%80=1", "room_id=%ed%a0%80"] {
            assert_eq!(Query::read(text), Err(RejectReason::QueryNotUtf8), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_a_browser_encodes_is_read_as_it_was(
            rooms in proptest::collection::vec(".{0,12}", 0..5),
            token in proptest::option::of(".{0,12}"),
        ) {
            let mut encoded = form_urlencoded::Serializer::new(String::new());
            rooms.iter().for_each(|room| { encoded.append_pair("room_id", room); });
            token.iter().for_each(|token| { encoded.append_pair("token", token); });
            let query = Query::read(&encoded.finish()).unwrap();
            let mut wanted = rooms;
            wanted.sort_unstable();
            wanted.dedup();
            proptest::prop_assert_eq!((query.rooms, query.token), (wanted, token));
        }

        #[test]
        fn any_query_is_read_or_refused(text in ".{0,60}") {
            let _ = Query::read(&text);
        }
    }
}
