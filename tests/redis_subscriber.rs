//! The subscriber connection: against Debian's Redis, and against servers that send what Redis
//! would not.
//!
//! Events are awaited with real wakers only: a waker that is not registered is a test that ends in
//! a timeout.

#[path = "common/counting.rs"]
mod counting;
#[path = "common/guarded.rs"]
mod guarded;
#[path = "common/redis.rs"]
mod redis;

use crate::redis::{Redis, free_port, wait_until};
use ::redis::{ConnectionInfo, IntoConnectionInfo};
use campanile::backplane::redis::connection::subscriber::{
    BUFFER_BYTES, CommandReply, Subscriber, SubscriberEvent,
};
use campanile::backplane::redis::failure::SetupError;
use counting::allocations_of;
use guarded::{Guarded, USER};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::timeout;

const USUAL: Duration = Duration::from_secs(2);
/// The longest message or reply, where that is not what is tested.
const LONGEST: usize = 64 << 20;

#[derive(Clone, Debug, PartialEq)]
enum Heard {
    Message(String, String),
    TooLong(String),
    Subscribed(String),
    Unsubscribed(String),
    Text(String),
    Number(i64),
    Error(String),
    Other,
}

impl From<SubscriberEvent<'_>> for Heard {
    fn from(event: SubscriberEvent<'_>) -> Heard {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match event {
            SubscriberEvent::Message { channel, body } => Heard::Message(text(channel), text(body)),
            SubscriberEvent::TooLong { channel } => Heard::TooLong(text(channel)),
            SubscriberEvent::Subscribed { channel } => Heard::Subscribed(text(channel)),
            SubscriberEvent::Unsubscribed { channel } => Heard::Unsubscribed(text(channel)),
            SubscriberEvent::Reply(CommandReply::Text(reply)) => Heard::Text(text(reply)),
            SubscriberEvent::Reply(CommandReply::Number(number)) => Heard::Number(number),
            SubscriberEvent::Reply(CommandReply::Error(error)) => Heard::Error(text(error)),
            SubscriberEvent::Reply(CommandReply::Other) => Heard::Other,
        }
    }
}

fn message(channel: &str, body: &str) -> Heard {
    Heard::Message(channel.into(), body.into())
}

fn subscribed(channel: &str) -> Heard {
    Heard::Subscribed(channel.into())
}

fn info(url: &str) -> ConnectionInfo {
    url.into_connection_info().expect("a URL")
}

async fn connect(redis: &Redis) -> Subscriber {
    Subscriber::connect(&info(&redis.url()), None, "test-sub", USUAL, LONGEST)
        .await
        .expect("it connects")
}

/// Why there is no connection.
async fn refusal(url: &str, tls_ca_file: Option<&str>) -> String {
    let refused = Subscriber::connect(&info(url), tls_ca_file, "test-sub", USUAL, LONGEST).await;
    refused.err().expect("it is refused").to_string()
}

fn say(subscriber: &mut Subscriber, command: &str) {
    let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
    subscriber.write(words.into_iter());
}

/// Waits for so many events, or the loss of the connection.
async fn hear(subscriber: &mut Subscriber, events: usize) -> Result<Vec<Heard>, String> {
    let mut heard = Vec::new();
    let all = poll_fn(|cx| {
        while heard.len() < events {
            let left = events - heard.len();
            match subscriber.poll(cx, left, |event| heard.push(event.into())) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error.to_string())),
            }
        }
        Poll::Ready(Ok(()))
    });
    timeout(Duration::from_secs(20), all).await.expect("it is heard in time")?;
    Ok(heard)
}

async fn hears(subscriber: &mut Subscriber, events: &[Heard]) {
    assert_eq!(hear(subscriber, events.len()).await.unwrap(), events);
}

/// Whether nothing can be received now.
fn is_quiet(subscriber: &mut Subscriber) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let mut is_quiet = true;
    while subscriber.poll(&mut cx, 100, |_| is_quiet = false).expect("it is not lost") {}
    is_quiet
}

#[tokio::test]
async fn a_channel_delivers_from_its_subscription_to_its_unsubscription() {
    let redis = Redis::start();
    let mut sub = connect(&redis).await;
    say(&mut sub, "SUBSCRIBE tower bell");
    say(&mut sub, "SSUBSCRIBE shard");
    say(&mut sub, "PING barrier-1");
    assert!(sub.unsent() > 0, "nothing goes out before it is polled");
    let all = [subscribed("tower"), subscribed("bell"), subscribed("shard")];
    hears(&mut sub, &all).await;
    hears(&mut sub, &[Heard::Text("barrier-1".into())]).await;
    assert_eq!(sub.unsent(), 0);
    assert!(is_quiet(&mut sub));
    redis.command(&["PUBLISH", "bell", "ding"]);
    redis.command(&["SPUBLISH", "shard", "dong"]);
    redis.command(&["PUBLISH", "elsewhere", "unheard"]);
    redis.command(&["PUBLISH", "tower", ""]);
    hears(&mut sub, &[message("bell", "ding"), message("shard", "dong"), message("tower", "")])
        .await;
    for command in
        ["UNSUBSCRIBE bell", "SUNSUBSCRIBE shard", "CLIENT ID", "COMMAND COUNT x", "TIME"]
    {
        say(&mut sub, command);
    }
    let heard = hear(&mut sub, 5).await.unwrap();
    assert_eq!(heard[..2], ["bell", "shard"].map(|channel| Heard::Unsubscribed(channel.into())));
    assert!(matches!(heard[2], Heard::Number(1..)), "{heard:?}");
    assert!(matches!(&heard[3], Heard::Error(why) if why.starts_with("ERR ")), "{heard:?}");
    assert_eq!(heard[4], Heard::Other);
    redis.command(&["PUBLISH", "bell", "unheard"]);
    redis.command(&["PUBLISH", "tower", "last"]);
    hears(&mut sub, &[message("tower", "last")]).await;
}

#[tokio::test]
async fn it_names_itself_and_may_ask_before_it_subscribes() {
    let redis = Redis::start();
    let url = format!("{}/3", redis.url());
    let mut sub =
        Subscriber::connect(&info(&url), None, "campanile-1-sub", USUAL, LONGEST).await.unwrap();
    let who = sub.ask(&[b"CLIENT", b"INFO"]).await.unwrap();
    assert!(who.contains(" name=campanile-1-sub "), "{who}");
    assert!(who.contains(" db=3 "), "{who}");
    let server = sub.ask(&[b"INFO", b"server"]).await.unwrap();
    assert!(server.lines().any(|line| line.starts_with("run_id:")), "{server}");
    let error = sub.ask(&[b"INFOR"]).await.unwrap_err();
    assert_eq!(error, SetupError::TooOld { command: "INFOR".into() }.into());
    let error = sub.ask(&[b"XADD", b"x"]).await.unwrap_err().to_string();
    assert!(error.starts_with("XADD: ERR wrong number of arguments"), "{error}");
    assert_eq!(sub.ask(&[b"PING"]).await.unwrap(), "PONG");
}

#[tokio::test]
async fn a_turn_hands_out_no_more_than_was_asked_and_says_that_there_is_more() {
    let redis = Redis::start();
    let mut sub = connect(&redis).await;
    for number in 0..10 {
        say(&mut sub, &format!("PING {number}"));
    }
    hears(&mut sub, &[Heard::Text("0".into())]).await;
    // All of it has arrived or arrives within this; no waker is needed below.
    wait_until("the server is done", || redis.command(&["PING"]) == "PONG");
    let mut cx = Context::from_waker(Waker::noop());
    let mut turns = Vec::new();
    let mut heard = 0;
    wait_until("the rest is heard", || {
        let before = heard;
        let more = sub.poll(&mut cx, 4, |_| heard += 1).unwrap();
        assert!(heard - before <= 4);
        assert_eq!(more, heard > before);
        turns.push(more);
        heard == 9
    });
    assert!(is_quiet(&mut sub));
}

#[tokio::test]
async fn ten_thousand_messages_arrive_in_order_and_cost_no_allocation() {
    const MESSAGES: usize = 10_000;
    let redis = Redis::start();
    let mut sub = connect(&redis).await;
    say(&mut sub, "SUBSCRIBE numbers");
    hears(&mut sub, &[subscribed("numbers")]).await;
    let script = "for n = 1, ARGV[1] do redis.call('PUBLISH', 'numbers', n) end return 1";
    for _round in 0..2 {
        redis.command(&["EVAL", script, "0", &MESSAGES.to_string()]);
        let (mut last, mut allocated) = (0, 0);
        let all = poll_fn(|cx| {
            while last < MESSAGES {
                let on_event = |event: SubscriberEvent<'_>| {
                    let SubscriberEvent::Message { channel: b"numbers", body } = event else {
                        panic!()
                    };
                    let text = std::str::from_utf8(body).expect("text");
                    assert_eq!(text.parse(), Ok(last + 1));
                    last += 1;
                };
                let (allocations, more) = allocations_of(|| sub.poll(cx, 1024, on_event));
                allocated += allocations;
                if !more.expect("it is not lost") {
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        });
        timeout(Duration::from_secs(20), all).await.expect("all is heard in time");
        assert_eq!(allocated, 0);
    }
}

#[tokio::test]
async fn a_message_of_twenty_megabytes_arrives_whole_and_leaves_no_memory_behind() {
    let redis = Redis::start();
    let mut sub = connect(&redis).await;
    let at_rest = sub.heap_bytes();
    say(&mut sub, "SUBSCRIBE big");
    hears(&mut sub, &[subscribed("big")]).await;
    let body: Vec<u8> = (0..20 << 20).map(|n: u32| (n % 251) as u8).collect();
    for _ in 0..2 {
        assert_eq!(redis.command_bytes(&[b"PUBLISH", b"big", &body]).as_deref(), Some("1"));
        redis.command(&["PUBLISH", "big", "small"]);
        let (mut sizes, mut most, mut turns) = (Vec::new(), 0, 0);
        let all = poll_fn(|cx| {
            while sizes.len() < 2 {
                turns += 1;
                let more = sub.poll(cx, 100, |event| {
                    let SubscriberEvent::Message { body: heard, .. } = event else { panic!() };
                    assert!(heard == body || heard == b"small");
                    sizes.push(heard.len());
                });
                most = most.max(sub.heap_bytes());
                if !more.expect("it is not lost") {
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        });
        timeout(Duration::from_secs(20), all).await.expect("it is heard in time");
        assert_eq!(sizes, [body.len(), 5]);
        assert!(turns >= 20, "each turn has its share: {turns}");
        assert!(most <= body.len() + 2 * BUFFER_BYTES, "{most}");
    }
    assert!(is_quiet(&mut sub));
    assert!(sub.heap_bytes() <= at_rest + BUFFER_BYTES, "{} bytes", sub.heap_bytes());
}

#[tokio::test]
async fn more_commands_than_the_kernel_takes_go_out_as_it_takes_them() {
    let redis = Redis::start();
    let mut sub = connect(&redis).await;
    redis.freeze();
    let token = vec![b't'; 64 * 1024];
    for _ in 0..300 {
        sub.write([&b"PING"[..], &token].into_iter());
    }
    assert!(is_quiet(&mut sub));
    assert!(sub.unsent() > 0, "19 MB are more than a socket takes");
    say(&mut sub, "PING last");
    redis.thaw();
    let heard = hear(&mut sub, 301).await.unwrap();
    assert!(heard[..300].iter().all(|heard| matches!(heard, Heard::Text(t) if t.len() == 65_536)));
    assert_eq!(heard[300], Heard::Text("last".into()));
    assert_eq!(sub.unsent(), 0);
    assert!(is_quiet(&mut sub));
    assert!(sub.heap_bytes() <= 3 * BUFFER_BYTES, "{} bytes", sub.heap_bytes());
}

#[tokio::test]
async fn a_frozen_server_is_silent_and_one_that_ends_is_noticed() {
    let mut redis = Redis::start();
    let mut sub = connect(&redis).await;
    say(&mut sub, "SUBSCRIBE a");
    hears(&mut sub, &[subscribed("a")]).await;
    redis.freeze();
    say(&mut sub, "PING 1");
    assert!(is_quiet(&mut sub), "silence is no loss; the canary judges it");
    let error = refusal(&redis.url(), None).await;
    assert_eq!(error, "the server does not answer");
    redis.thaw();
    hears(&mut sub, &[Heard::Text("1".into())]).await;
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let lost = "the subscribing connection was lost: the server closed it";
    assert_eq!(hear(&mut sub, 1).await, Err(lost.to_owned()));
    assert_eq!(hear(&mut sub, 1).await, Err(lost.to_owned()), "lost is lost");
    let mut sub = connect(&redis).await;
    redis.kill();
    let error = hear(&mut sub, 1).await.unwrap_err();
    assert!(error.starts_with("the subscribing connection was lost: "), "{error}");
    let error = refusal(&redis.url(), None).await;
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_subscriber_that_is_not_polled_is_cut_off_by_the_server_and_keeps_nothing() {
    let redis = Redis::start();
    let limit = ["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0"];
    assert_eq!(redis.command(&limit), "OK");
    let mut sub = connect(&redis).await;
    say(&mut sub, "SUBSCRIBE flood");
    hears(&mut sub, &[subscribed("flood")]).await;
    let at_rest = sub.heap_bytes();
    let body = "x".repeat(256 * 1024);
    wait_until("the server has had enough", || redis.command(&["PUBLISH", "flood", &body]) == "0");
    assert_eq!(sub.heap_bytes(), at_rest);
    let error = hear(&mut sub, 10_000).await.unwrap_err();
    assert!(error.starts_with("the subscribing connection was lost: "), "{error}");
}

#[tokio::test]
async fn a_slot_that_moves_away_is_reported_and_disturbs_no_reply() {
    let port = free_port().to_string();
    let redis = Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &port]);
    redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    redis.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    wait_until("the cluster is up", || {
        redis.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
    });
    let slot = redis.command(&["CLUSTER", "KEYSLOT", "{p1}"]);
    let mut sub = connect(&redis).await;
    say(&mut sub, "SSUBSCRIBE {p1}a {p1}b");
    say(&mut sub, "PING 1");
    let all = [subscribed("{p1}a"), subscribed("{p1}b"), Heard::Text("1".into())];
    hears(&mut sub, &all).await;
    redis.command(&["CLUSTER", "DELSLOTS", &slot]);
    for number in 2..20 {
        say(&mut sub, &format!("PING {number}"));
    }
    say(&mut sub, "SSUBSCRIBE {p1}c");
    say(&mut sub, "SSUBSCRIBE {p2}a {p3}a");
    say(&mut sub, "PING 20");
    let heard = hear(&mut sub, 2 + 18 + 2 + 1).await.unwrap();
    let (mut gone, mut replies) = (Vec::new(), Vec::new());
    for heard in heard {
        match heard {
            Heard::Unsubscribed(channel) => gone.push(channel),
            Heard::Text(token) => replies.push(token),
            Heard::Error(why) => replies.push(why.split(' ').next().unwrap().to_owned()),
            other => panic!("{other:?}"),
        }
    }
    gone.sort();
    assert_eq!(gone, ["{p1}a", "{p1}b"]);
    let mut expected: Vec<String> = (2..20).map(|number| number.to_string()).collect();
    expected.extend(["CLUSTERDOWN", "CROSSSLOT", "20"].map(str::to_owned));
    assert_eq!(replies, expected);
}

#[tokio::test]
async fn a_replica_is_refused() {
    let [redis, master] = [Redis::start(), Redis::start()];
    redis.command(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    assert_eq!(refusal(&redis.url(), None).await, "the server is not a master");
}

#[tokio::test]
async fn a_user_with_few_rights_receives_through_tls() {
    let guarded = Guarded::start("subscriber");
    let (url, authority) = (guarded.url(USER), guarded.authority());
    let connected =
        Subscriber::connect(&info(&url), Some(&authority), "tls-sub", USUAL, LONGEST).await;
    let mut sub = connected.unwrap();
    say(&mut sub, "SUBSCRIBE campanile:a");
    say(&mut sub, "SUBSCRIBE other");
    say(&mut sub, "PING 1");
    let heard = hear(&mut sub, 3).await.unwrap();
    assert_eq!([&heard[0], &heard[2]], [&subscribed("campanile:a"), &Heard::Text("1".into())]);
    assert!(matches!(&heard[1], Heard::Error(why) if why.starts_with("NOPERM ")), "{heard:?}");
    let clients = guarded.redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    assert!(clients.contains("user=bell"), "{clients}");
    assert!(clients.contains("name=tls-sub"), "{clients}");
    // Many small ones, then one that is many records of TLS, with real wakers.
    let numbers = "for n = 1, 5000 do redis.call('PUBLISH', 'campanile:a', n) end return 1";
    guarded.redis.command(&["EVAL", numbers, "0"]);
    let body = "x".repeat(3 << 20);
    guarded.redis.command(&["PUBLISH", "campanile:a", &body]);
    let expected = (1..=5000).map(|n| n.to_string()).chain([body]);
    let expected: Vec<_> = expected.map(|body| message("campanile:a", &body)).collect();
    hears(&mut sub, &expected).await;
    guarded.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let lost = "the subscribing connection was lost: the server closed it";
    assert_eq!(hear(&mut sub, 1).await, Err(lost.to_owned()));
}

#[tokio::test]
async fn errors_of_tls_and_of_the_user_are_shown_without_the_password() {
    let guarded = Guarded::start("refused-subscriber");
    let (url, authority) = (guarded.url(USER), guarded.authority());
    let error = refusal(&guarded.url("bell:guessed-it"), Some(&authority)).await;
    assert!(error.starts_with("HELLO: WRONGPASS "), "{error}");
    assert!(!error.contains("guessed-it"), "{error}");
    let error = refusal(&url, None).await;
    assert!(error.contains("UnknownIssuer"), "{error}");
    let by_name = url.replace("127.0.0.1", "localhost");
    let error = refusal(&by_name, Some(&authority)).await;
    assert!(error.contains("not valid for name"), "{error}");
    let insecure = format!("{url}#insecure");
    let error = refusal(&insecure, Some(&authority)).await;
    assert!(error.contains("redis.tls_ca_file"), "{error}");
    for (path, why) in [("/nowhere", "No such file"), (file!(), "no certificate")] {
        let error = refusal(&url, Some(path)).await;
        assert!(error.starts_with(&format!("redis.tls_ca_file = {path}: ")), "{error}");
        assert!(error.contains(why), "{error}");
    }
    let error = refusal("redis+unix:///nowhere/redis.sock", None).await;
    assert!(error.starts_with("/nowhere/redis.sock: No such file"), "{error}");
    let plain = format!("rediss://127.0.0.1:{}", guarded.redis.port);
    let error = refusal(&plain, Some(&authority)).await;
    assert!(!error.is_empty());
}

/// A server of our own: sends this to HELLO, and after ROLE all of the rest, in pieces of such a
/// size.
fn fake(hello: &str, rest: Vec<u8>, piece: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().expect("it is bound").port());
    let hello = hello.to_owned();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_nodelay(true).expect("a socket");
        let mut hear_and_say = |word: &str, reply: &[u8]| {
            let mut heard = Vec::new();
            while !heard.windows(word.len()).any(|part| part == word.as_bytes()) {
                let mut byte = [0];
                if !matches!(stream.read(&mut byte), Ok(1)) {
                    return;
                }
                heard.extend(byte);
            }
            for piece in reply.chunks(piece) {
                if stream.write_all(piece).is_err() {
                    return;
                }
            }
        };
        hear_and_say("SETNAME", hello.as_bytes());
        hear_and_say("ROLE\r\n", b"*1\r\n$6\r\nmaster\r\n");
        hear_and_say("GO\r\n", &rest);
    });
    url
}

#[tokio::test]
async fn any_pieces_lead_to_the_same_events() {
    let mut stream = b"+begin\r\n".to_vec();
    for (number, size) in [0, 1, 130_000, 17, 131_072, 16_000, 300_000, 3].into_iter().enumerate() {
        let body = "x".repeat(size);
        let push = format!(">3\r\n$7\r\nmessage\r\n$1\r\n{number}\r\n${size}\r\n{body}\r\n");
        stream.extend_from_slice(push.as_bytes());
        stream.extend_from_slice(
            b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n|1\r\n+a\r\n:1\r\n:7\r\n",
        );
        stream.extend_from_slice(b">3\r\n$12\r\nsunsubscribe\r\n$1\r\nu\r\n:0\r\n");
    }
    stream.extend_from_slice(b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n");
    let mut told = None;
    for piece in [1_000_000, 1_448, 33] {
        let url = fake("%1\r\n+proto\r\n:3\r\n", stream.clone(), piece);
        let mut sub = Subscriber::connect(&info(&url), None, "x", USUAL, LONGEST).await.unwrap();
        say(&mut sub, "GO");
        let heard = hear(&mut sub, 1 + 8 * 3 + 1).await.unwrap();
        assert_eq!(heard.first(), Some(&Heard::Text("begin".into())));
        assert_eq!(heard.last(), Some(&Heard::Unsubscribed(String::new())));
        assert_eq!(told.get_or_insert(heard.clone()), &heard);
        let lost = hear(&mut sub, 1).await.unwrap_err();
        assert_eq!(lost, "the subscribing connection was lost: the server closed it");
    }
}

#[tokio::test]
async fn bytes_that_are_no_resp_or_no_pubsub_end_the_connection() {
    for (rest, why) in [
        ("HTTP/1.1 400 Bad Request\r\n\r\n", "not RESP: no value begins like that"),
        (">3\r\n$7\r\nmessage\r\n$1\r\na\r\n:1\r\n", "a push lacks what its kind says"),
        (">1\r\n$9\r\nsubscribe\r\n", "a push lacks what its kind says"),
        (">1\r\n:1\r\n", "a push has no kind"),
        ("$9999999999\r\n", "a string is too long"),
    ] {
        let url = fake("%0\r\n", format!("+ok\r\n{rest}+never heard\r\n").into_bytes(), 1_000);
        let mut sub = Subscriber::connect(&info(&url), None, "x", USUAL, LONGEST).await.unwrap();
        say(&mut sub, "GO");
        hears(&mut sub, &[Heard::Text("ok".into())]).await;
        for _ in 0..2 {
            let lost = hear(&mut sub, 1).await.unwrap_err();
            assert!(lost.contains(why), "{rest}: {lost}");
        }
    }
}

#[tokio::test]
async fn a_server_that_repeats_the_password_is_not_repeated() {
    for (said, shown) in [
        (
            "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `ann`, `s3c\r\n",
            "the server does not know HELLO. ",
        ),
        ("-ERR what is 's3cret' supposed to mean\r\n", "HELLO: ERR "),
    ] {
        let url = fake(said, Vec::new(), 1_000).replace("://", "://ann:s3cret@");
        let error = refusal(&url, None).await;
        assert!(error.starts_with(shown), "{error}");
        assert!(!error.contains("s3c"), "{error}");
    }
    let error = refusal(&fake("HTTP/1.1 400\r\n", Vec::new(), 9), None).await;
    assert!(error.contains("not RESP"), "{error}");
}

/// A server that sends to HELLO, or after ROLE, an endless amount of this.
fn endless(is_before_hello: bool, head: &'static [u8], pattern: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().expect("it is bound").port());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut heard = [0; 4096];
        if !is_before_hello {
            for reply in [&b"%0\r\n"[..], b"*1\r\n$6\r\nmaster\r\n"] {
                let _ = stream.read(&mut heard);
                let _ = stream.write_all(reply);
            }
        }
        let _ = stream.read(&mut heard);
        let _ = stream.write_all(head);
        let pattern = pattern.repeat(64 * 1024 / pattern.len());
        // 48 MB at most; the client has ended the connection before, or drops all of it.
        for _ in 0..750 {
            if stream.write_all(&pattern).is_err() {
                return;
            }
        }
    });
    url
}

#[tokio::test]
async fn what_is_larger_than_allowed_is_refused_before_it_is_stored() {
    const STRING_BYTES_MAX: usize = 64 * 1024;
    let cases: [(&[u8], &[u8]); 6] = [
        (b"$1000000000\r\n", b"x"),
        (b"!1000000000\r\n", b"x"),
        (b"", b"*1\r\n"),
        (b"*1000000000\r\n", b"+a\r\n"),
        (b"+", b"x"),
        (b">1000000000\r\n", b"+a\r\n"),
    ];
    for (head, pattern) in cases {
        let shown = String::from_utf8_lossy(head).into_owned();
        let before = counting::bytes_held();
        let url = endless(true, head, pattern);
        let refused = Subscriber::connect(&info(&url), None, "x", USUAL, STRING_BYTES_MAX).await;
        assert!(refused.is_err(), "{shown}");
        drop(refused);
        assert!(counting::bytes_held() - before < 64 * 1024, "{shown}");
        let url = endless(false, head, pattern);
        let mut sub = Subscriber::connect(&info(&url), None, "x", USUAL, STRING_BYTES_MAX)
            .await
            .expect("it is refused later");
        say(&mut sub, "GO");
        let mut most = 0;
        let lost = poll_fn(|cx| {
            loop {
                match sub.poll(cx, 100, |event| assert_eq!(event, NULL_REPLY)) {
                    Err(why) => return Poll::Ready(why),
                    Ok(more) => {
                        most = most.max(sub.heap_bytes());
                        if !more {
                            return Poll::Pending;
                        }
                    }
                }
            }
        });
        timeout(Duration::from_secs(20), lost).await.expect("it is lost in time");
        assert!(most <= 3 * BUFFER_BYTES, "{shown}: {most}");
    }
}

/// A null in place of a reply that was too long.
const NULL_REPLY: SubscriberEvent<'_> = SubscriberEvent::Reply(CommandReply::Other);

#[tokio::test]
async fn a_message_that_is_too_long_is_reported_and_the_next_one_arrives() {
    let redis = Redis::start();
    let mut sub =
        Subscriber::connect(&info(&redis.url()), None, "x", USUAL, 64 * 1024).await.unwrap();
    say(&mut sub, "SUBSCRIBE a");
    say(&mut sub, "SSUBSCRIBE b");
    hears(&mut sub, &[subscribed("a"), subscribed("b")]).await;
    for bytes in [64 * 1024 + 1, 200_000, 10 << 20] {
        let body = vec![b'x'; bytes];
        redis.command_bytes(&[b"PUBLISH", b"a", &body]);
        redis.command(&["PUBLISH", "a", "after it"]);
        redis.command_bytes(&[b"SPUBLISH", b"b", &body]);
        redis.command_bytes(&[b"PUBLISH", b"a", &body[..64 * 1024]]);
        let too_long = |channel: &str| Heard::TooLong(channel.into());
        let longest = message("a", &"x".repeat(64 * 1024));
        let all = [too_long("a"), message("a", "after it"), too_long("b"), longest];
        hears(&mut sub, &all).await;
        assert!(sub.heap_bytes() <= 3 * BUFFER_BYTES, "{} bytes", sub.heap_bytes());
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_is_left_out_wherever_it_is_cut() {
    let push = |channel: &str, len: usize| {
        let body = "x".repeat(len);
        format!(">3\r\n$7\r\nmessage\r\n$1\r\n{channel}\r\n${len}\r\n{body}\r\n")
    };
    let stream = [push("a", 2_001), push("b", 3), push("c", 5_000), push("d", 2_000)].concat();
    let stream = [stream.repeat(3), "+end\r\n".to_owned()].concat();
    for piece in [1_000_000, 1_448, 33, 1] {
        let url = fake("%0\r\n", stream.clone().into_bytes(), piece);
        let mut sub = Subscriber::connect(&info(&url), None, "x", USUAL, 2_000).await.unwrap();
        say(&mut sub, "GO");
        for _ in 0..3 {
            let all = [
                Heard::TooLong("a".into()),
                message("b", "xxx"),
                Heard::TooLong("c".into()),
                message("d", &"x".repeat(2_000)),
            ];
            hears(&mut sub, &all).await;
        }
        hears(&mut sub, &[Heard::Text("end".into())]).await;
    }
}
