//! Values that another program may have written to Redis, for tests of what reads from there.

use proptest::prelude::*;
use redis::Value;

/// Texts where a number is expected.
pub(crate) const TEXTS: &[&[u8]] = &[
    b"",
    b"0",
    b"-0",
    b"00",
    b"007",
    b"+5",
    b" 5",
    b"5 ",
    b"5\n",
    b"5\0",
    b"-1",
    b"1.5",
    b"1e3",
    b"1e308",
    b"0x10",
    b"nan",
    b"inf",
    b"abc",
    b"\xFF\xFE",
    b"9007199254740991",
    b"9007199254740992",
    b"9007199254740993",
    b"9999999999999999",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999999999999999999",
];

/// Numbers at limits.
pub(crate) const NUMBERS: [u64; 10] = [
    0,
    1,
    2,
    (1 << 53) - 2,
    (1 << 53) - 1,
    1 << 53,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// A number at a limit, or a small one.
pub(crate) fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![proptest::sample::select(&NUMBERS[..]), 0..20u64]
}

/// A text where a number is expected.
pub(crate) fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::sample::select(TEXTS).prop_map(<[u8]>::to_vec),
        edge().prop_map(|number| number.to_string().into_bytes()),
        "[0-9:. -]{0,24}".prop_map(String::into_bytes),
        any::<Vec<u8>>(),
        Just(vec![b'7'; 100_000]),
    ]
}

/// An error reply.
pub(crate) fn error() -> impl Strategy<Value = Value> {
    let lines: &[&str] = &[
        "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
        "-ERR Error running script: @user_script:3: WRONGTYPE Operation against a key\r\n",
        "-UNREADABLE s\r\n",
        "-NOSCRIPT No matching script.\r\n",
        "-OOM command not allowed\r\n",
        "-\r\n",
    ];
    proptest::sample::select(lines)
        .prop_map(|line| redis::parse_redis_value(line.as_bytes()).unwrap_or(Value::Nil))
}

/// Any reply.
pub(crate) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<i64>().prop_map(Value::Int),
        any::<bool>().prop_map(Value::Boolean),
        any::<f64>().prop_map(Value::Double),
        text().prop_map(Value::BulkString),
        "[a-z0-9:]{0,12}".prop_map(Value::SimpleString),
        error(),
    ];
    leaf.prop_recursive(4, 64, 5, |inner| {
        let several = prop::collection::vec(inner.clone(), 0..5);
        let pairs = prop::collection::vec((inner.clone(), inner), 0..3);
        prop_oneof![several.prop_map(Value::Array), pairs.prop_map(Value::Map)]
    })
}
