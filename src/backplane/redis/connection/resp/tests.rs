use super::*;
use proptest::prelude::*;
use redis::Value;

/// An item that owns what it says.
#[derive(Clone, Debug)]
pub(in crate::backplane::redis::connection) enum Tree {
    Simple(String),
    Error(String),
    BlobError(String),
    Int(i64),
    Bulk(Vec<u8>),
    Verbatim(String),
    Null(&'static str),
    Bool(bool),
    Double(f64),
    BigNumber(u128),
    Array(Vec<Tree>),
    Set(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
    Push(Vec<Tree>),
    About(Vec<(Tree, Tree)>, Box<Tree>),
}

impl Tree {
    fn write(&self, out: &mut Vec<u8>) {
        let mut line = |text: String| out.extend_from_slice(text.as_bytes());
        match self {
            Tree::Simple(text) => line(format!("+{text}\r\n")),
            Tree::Error(text) => line(format!("-{text}\r\n")),
            Tree::BlobError(text) => line(format!("!{}\r\n{text}\r\n", text.len())),
            Tree::Int(number) => line(format!(":{number}\r\n")),
            Tree::Bulk(bytes) => {
                line(format!("${}\r\n", bytes.len()));
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Tree::Verbatim(text) => line(format!("={}\r\ntxt:{text}\r\n", 4 + text.len())),
            Tree::Null(text) => line((*text).to_owned()),
            Tree::Bool(yes) => line(format!("#{}\r\n", if *yes { 't' } else { 'f' })),
            Tree::Double(number) => line(format!(",{number}\r\n")),
            Tree::BigNumber(number) => line(format!("({number}\r\n")),
            Tree::Array(trees) => write_all('*', trees, out),
            Tree::Set(trees) => write_all('~', trees, out),
            Tree::Push(trees) => write_all('>', trees, out),
            Tree::Map(pairs) => write_pairs('%', pairs, out),
            Tree::About(pairs, tree) => {
                write_pairs('|', pairs, out);
                tree.write(out);
            }
        }
    }

    pub(in crate::backplane::redis::connection) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    pub(in crate::backplane::redis::connection) fn levels(&self) -> usize {
        let most = |trees: &mut dyn Iterator<Item = &Tree>| trees.map(Tree::levels).max();
        let of_pairs = |pairs: &[(Tree, Tree)]| {
            most(&mut pairs.iter().flat_map(|(key, value)| [key, value])).unwrap_or(0)
        };
        match self {
            Tree::Array(trees) | Tree::Set(trees) | Tree::Push(trees) => {
                1 + most(&mut trees.iter()).unwrap_or(0)
            }
            Tree::Map(pairs) => 1 + of_pairs(pairs),
            Tree::About(pairs, tree) => 1 + of_pairs(pairs).max(tree.levels()),
            _ => 0,
        }
    }
}

fn write_all(kind: char, trees: &[Tree], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{kind}{}\r\n", trees.len()).as_bytes());
    trees.iter().for_each(|tree| tree.write(out));
}

fn write_pairs(kind: char, pairs: &[(Tree, Tree)], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{kind}{}\r\n", pairs.len()).as_bytes());
    for (key, value) in pairs {
        key.write(out);
        value.write(out);
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just("OK".to_owned()), "[a-zA-Z0-9 :.é]{0,12}", "[A-Z]{2,9} [a-z 0-9:.]{1,20}"]
}

pub(in crate::backplane::redis::connection) fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        text().prop_map(Tree::Simple),
        text().prop_map(Tree::Error),
        text().prop_map(Tree::BlobError),
        any::<i64>().prop_map(Tree::Int),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Tree::Bulk),
        Just(Tree::Bulk(b"a\r\n$-1\r\nb".to_vec())),
        text().prop_map(Tree::Verbatim),
        prop::sample::select(&["_\r\n", "$-1\r\n", "*-1\r\n"][..]).prop_map(Tree::Null),
        any::<bool>().prop_map(Tree::Bool),
        (-1e9..1e9).prop_map(Tree::Double),
        Just(Tree::Double(f64::INFINITY)),
        any::<u128>().prop_map(Tree::BigNumber),
    ];
    leaf.prop_recursive(5, 48, 5, |inner| {
        let some = prop::collection::vec(inner.clone(), 0..5);
        let pairs = prop::collection::vec((inner.clone(), inner.clone()), 0..3);
        let kind = Just(Tree::Simple("kind".to_owned()));
        prop_oneof![
            some.clone().prop_map(Tree::Array),
            some.clone().prop_map(Tree::Set),
            pairs.clone().prop_map(Tree::Map),
            // The crate takes a kind, and that it is text.
            (kind, some).prop_map(|(kind, mut some)| {
                some.insert(0, kind);
                Tree::Push(some)
            }),
            (pairs, inner).prop_map(|(pairs, tree)| Tree::About(pairs, Box::new(tree))),
        ]
    })
}

/// Whether the redis crate says the same.
fn agrees(item: RespValue<'_>, value: &Value) -> bool {
    let all = |mut parts: RespItems<'_>, values: &[Value]| {
        parts.len() == values.len()
            && values.iter().all(|value| agrees(parts.next().expect("it has so many"), value))
    };
    match (item, value) {
        (item, Value::Attribute { data, .. }) => agrees(item, data),
        (RespValue::Simple(text), Value::Okay) => text == b"OK",
        (RespValue::Simple(text), Value::SimpleString(same)) => text == same.as_bytes(),
        (RespValue::Error(text), Value::ServerError(same)) => {
            let same = match same.details() {
                Some(details) => format!("{} {details}", same.code()),
                None => same.code().to_owned(),
            };
            text == same.as_bytes()
        }
        (RespValue::Int(number), Value::Int(same)) => number == *same,
        (RespValue::Bulk(bytes), Value::BulkString(same)) => bytes == same,
        (RespValue::Verbatim(text), Value::VerbatimString { text: same, .. }) => {
            text == same.as_bytes()
        }
        (RespValue::Null, Value::Nil) => true,
        (RespValue::Bool(yes), Value::Boolean(same)) => yes == *same,
        (RespValue::Double(number), Value::Double(same)) => number == *same,
        (RespValue::BigNumber(text), Value::BigNumber(same)) => text == same,
        (RespValue::Array(parts), Value::Array(same)) => all(parts, same),
        (RespValue::Set(parts), Value::Set(same)) => all(parts, same),
        (RespValue::Map(parts), Value::Map(same)) => {
            let same: Vec<Value> =
                same.iter().flat_map(|(key, value)| [key.clone(), value.clone()]).collect();
            all(parts, &same)
        }
        (RespValue::Push(mut parts), Value::Push { data, .. }) => {
            parts.next() == Some(RespValue::Simple(b"kind")) && all(parts, data)
        }
        _ => false,
    }
}

/// Feeds the stream in pieces, as a connection would, and tells every item as text. Asks only when
/// there is as much as was reported to be needed; `Err` at the first thing that is malformed.
fn parsed(stream: &[u8], mut pieces: impl FnMut() -> usize) -> Result<Vec<String>, MalformedResp> {
    let (mut parsed, mut begin, mut end, mut needs) = (Vec::new(), 0, 0, 0);
    loop {
        while end - begin >= needs {
            match parse(&stream[begin..end])? {
                ParseProgress::Value(item, len) => {
                    parsed.push(all_of(item));
                    begin += len;
                    needs = 0;
                }
                ParseProgress::NeedsBytes(len) => {
                    assert!(len > end - begin, "it is all there already");
                    needs = len;
                }
                ParseProgress::TooLong(long) => panic!("{long:?} without a limit"),
            }
        }
        if end == stream.len() {
            return Ok(parsed);
        }
        end = stream.len().min(end + pieces().max(1));
    }
}

/// Walks all parts, so that none of them can be malformed unnoticed.
fn all_of(item: RespValue<'_>) -> String {
    match item {
        RespValue::Array(parts)
        | RespValue::Set(parts)
        | RespValue::Map(parts)
        | RespValue::Push(parts) => {
            let length = parts.len();
            let all: Vec<String> = parts.map(all_of).collect();
            assert_eq!(all.len(), length);
            format!("({})", all.join(" "))
        }
        leaf => format!("{leaf:?}"),
    }
}

fn stream(trees: &[Tree]) -> Vec<u8> {
    trees.iter().flat_map(Tree::bytes).collect()
}

proptest! {
    #[test]
    fn the_redis_crate_says_the_same(tree in tree()) {
        let bytes = tree.bytes();
        let value = redis::parse_redis_value(&bytes).unwrap();
        match parse(&bytes) {
            Ok(ParseProgress::Value(item, len)) => {
                prop_assert_eq!(len, bytes.len());
                prop_assert!(agrees(item, &value), "{:?}\n{:?}", all_of(item), value);
            }
            Err(MalformedResp("too many levels")) => prop_assert!(tree.levels() > DEPTH_MAX),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn wherever_the_stream_is_cut_the_items_are_the_same(
        trees in prop::collection::vec(tree(), 1..4),
        pieces in prop::collection::vec(1..50usize, 1..20),
    ) {
        let bytes = stream(&trees);
        let whole = parsed(&bytes, || bytes.len());
        if let Ok(items) = &whole {
            prop_assert_eq!(items.len(), trees.len());
        }
        for at in 0..bytes.len() {
            let mut cut = [at, bytes.len()].into_iter();
            prop_assert_eq!(&parsed(&bytes, || cut.next().unwrap_or(1)), &whole);
        }
        prop_assert_eq!(&parsed(&bytes, || 1), &whole);
        let mut pieces = pieces.into_iter().cycle();
        prop_assert_eq!(&parsed(&bytes, || pieces.next().unwrap_or(1)), &whole);
    }

    #[test]
    fn what_is_needed_is_never_more_than_the_item_has(tree in tree()) {
        let bytes = tree.bytes();
        for len in 0..bytes.len() {
            if let Ok(ParseProgress::NeedsBytes(needs)) = parse(&bytes[..len]) {
                prop_assert!(needs > len && needs <= bytes.len(), "{needs} of {}", bytes.len());
            } else {
                prop_assert!(parse(&bytes).is_err(), "{len} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn no_bytes_bring_it_down(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parsed(&bytes, || 7);
    }

    /// Bytes that say something more often than any bytes do.
    #[test]
    fn nothing_that_looks_like_resp_brings_it_down(
        words in prop::collection::vec(
            prop_oneof![
                prop::sample::select(&b"+-:$*%~>|_#,(!=tf0123456789\r\n"[..]).prop_map(|b| vec![b]),
                Just(b"\r\n".to_vec()),
                prop::sample::select(&["*1\r\n", "|0\r\n", "%1\r\n", ">3\r\n", "$1\r\na\r\n"][..])
                    .prop_map(|word| word.as_bytes().to_vec()),
            ],
            0..80,
        ),
    ) {
        let bytes = words.concat();
        let _ = parsed(&bytes, || 1);
    }

    /// Good streams, spoiled a little.
    #[test]
    fn nothing_spoiled_brings_it_down(
        trees in prop::collection::vec(tree(), 1..5),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..4),
    ) {
        let mut bytes = stream(&trees);
        for (at, byte, how) in spoils {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.drain(at..bytes.len().min(at + 1 + usize::from(byte % 8)))),
            }
            if bytes.is_empty() {
                bytes.push(byte);
            }
        }
        // What is malformed may be noticed later, or not any more, when it comes in pieces.
        if let Ok(items) = parsed(&bytes, || bytes.len()) {
            prop_assert_eq!(parsed(&bytes, || 3), Ok(items));
        }
    }
}

fn malformed(bytes: &[u8]) -> &'static str {
    match parse(bytes) {
        Err(MalformedResp(why)) => why,
        other => panic!("{}: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn a_message_is_three_strings_in_a_push() {
    let bytes = b">3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$5\r\nhel\r\n\r\n+PONG\r\n";
    let Ok(ParseProgress::Value(RespValue::Push(parts), 38)) = parse(bytes) else {
        panic!("{:?}", parse(bytes))
    };
    let parts: Vec<_> = parts.collect();
    assert_eq!(
        parts,
        [RespValue::Bulk(b"message"), RespValue::Bulk(b"room"), RespValue::Bulk(b"hel\r\n")]
    );
    assert_eq!(parse(&bytes[38..]), Ok(ParseProgress::Value(RespValue::Simple(b"PONG"), 7)));
}

#[test]
fn the_length_of_a_body_says_how_much_is_needed() {
    assert_eq!(parse(b""), Ok(ParseProgress::NeedsBytes(3)));
    assert_eq!(parse(b">3\r\n"), Ok(ParseProgress::NeedsBytes(7)));
    assert_eq!(parse(b"$1000000\r\n"), Ok(ParseProgress::NeedsBytes(1_000_012)));
    assert_eq!(parse(b">2\r\n+a\r\n$70\r\nabc"), Ok(ParseProgress::NeedsBytes(8 + 5 + 72)));
    assert_eq!(parse(b"$1073741824\r\n"), Ok(ParseProgress::NeedsBytes(13 + (1 << 30) + 2)));
}

#[test]
fn limits_hold() {
    assert_eq!(malformed(b"$1073741825\r\n"), "a string is too long");
    let [fits, deep] = [DEPTH_MAX, DEPTH_MAX + 1].map(|levels| b"*1\r\n".repeat(levels));
    assert!(matches!(parse(&[&fits[..], b":1\r\n"].concat()), Ok(ParseProgress::Value(..))));
    assert_eq!(malformed(&[&deep[..], b":1\r\n"].concat()), "too many levels");
    assert_eq!(malformed(&[b"*2\r\n", &deep[..]].concat()), "too many levels");
    assert_eq!(malformed(b"*21846\r\n"), "too many parts");
    assert_eq!(malformed(b"%18446744073709551615\r\n"), "too many parts");
    let many = |parts: usize| format!("*{parts}\r\n{}", "+a\r\n".repeat(parts)).into_bytes();
    assert!(matches!(parse(&many(16_000)), Ok(ParseProgress::Value(..))));
    assert_eq!(malformed(&many(17_000)), "too many parts, or a line without end");
    let endless = [b"+", &[b'a'; OVERHEAD_BYTES_MAX + 1][..]].concat();
    assert_eq!(malformed(&endless), "too many parts, or a line without end");
    let attributes = b"|0\r\n".repeat(OVERHEAD_BYTES_MAX);
    assert_eq!(malformed(&attributes), "too many parts, or a line without end");
}

#[test]
fn what_no_server_says_is_malformed() {
    for bytes in [
        "a",
        "\r\n",
        "+a\n",
        "+a\rb",
        ":\r\n",
        ":1 \r\n",
        ":9223372036854775808\r\n",
        "$+1\r\na\r\n",
        "$\r\n",
        "$-2\r\n",
        "$ 1\r\na\r\n",
        "$?\r\n",
        "*?\r\n",
        "*-2\r\n",
        "%-1\r\n",
        ">-1\r\n",
        "$1\r\nab\r\n",
        "$1\r\na\ra",
        "#x\r\n",
        "_x\r\n",
        ",one\r\n",
        "=3\r\ntxt\r\n",
        "=5\r\nabcde\r\n",
        ".\r\n",
    ] {
        assert!(parse(bytes.as_bytes()).is_err(), "{bytes:?}: {:?}", parse(bytes.as_bytes()));
    }
}

#[test]
fn attributes_are_walked_over_wherever_they_stand() {
    let bytes = b"*2\r\n|1\r\n+ttl\r\n*2\r\n:1\r\n:2\r\n|0\r\n:7\r\n:8\r\n";
    let Ok(ParseProgress::Value(RespValue::Array(parts), len)) = parse(bytes) else { panic!() };
    assert_eq!(len, bytes.len());
    assert_eq!(parts.collect::<Vec<_>>(), [RespValue::Int(7), RespValue::Int(8)]);
    assert_eq!(
        parse(b"|1\r\n+a\r\n+b\r\n+OK\r\n"),
        Ok(ParseProgress::Value(RespValue::Simple(b"OK"), 17))
    );
}

#[test]
fn a_string_that_is_too_long_is_reported_before_its_first_byte_is_there() {
    let long = |header, body, len| Ok(ParseProgress::TooLong(LongString { header, body, len }));
    assert_eq!(parse_within(b"$11\r\n", 10), long(0, 5, 13));
    assert_eq!(parse_within(b"$1000000000\r\nabc", 10), long(0, 13, 1_000_000_002));
    let push = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$11\r\n";
    assert_eq!(parse_within(push, 10), long(24, 29, 13));
    assert_eq!(parse_within(b"!11\r\n", 10), long(0, 5, 13));
    assert_eq!(parse_within(b"$10\r\n", 10), Ok(ParseProgress::NeedsBytes(17)));
    let many = [&b"*40\r\n"[..], &b"$2000\r\n"[..]].concat();
    let mut many = many[..many.len() - 7].to_vec();
    for _ in 0..40 {
        many.extend_from_slice(b"$2000\r\n");
        many.extend_from_slice(&[b'x'; 2000]);
        many.extend_from_slice(b"\r\n");
    }
    let why = MalformedResp("the strings of a value are too long together");
    assert_eq!(parse_within(&many, 2000), Err(why));
    assert!(matches!(parse_within(&many, 20_000), Ok(ParseProgress::Value(..))));
}
