use super::*;
use proptest::prelude::*;

fn servers(text: &str) -> RedisServers {
    RedisServers::read(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn deployment(text: &str) -> Deployment {
    servers(text).deployment
}

fn hosts(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|host| host.to_string()).collect()
}

#[test]
fn each_way_to_run_redis_is_understood() {
    for (text, addresses) in [
        ("redis://h", vec!["h:6379"]),
        ("redis://h/", vec!["h:6379"]),
        ("rediss://u:p@h:7/1", vec!["h:7"]),
        ("redis://[::1]:7", vec!["[::1]:7"]),
        ("redis://[::1],h", vec!["[::1]:6379", "h:6379"]),
        ("redis://[0:0:0:0:0:0:0:1]", vec!["[::1]:6379"]),
        ("redis://h:06379?protocol=resp3", vec!["h:6379"]),
        ("redis+unix:///run/redis.sock", vec!["/run/redis.sock"]),
        ("redis+unix:///run/a%20b,c.sock?db=1&user=u&pass=p", vec!["/run/a b,c.sock"]),
    ] {
        assert_eq!(deployment(text), Deployment::Fixed(hosts(&addresses)), "{text}");
    }
    let cluster = deployment("rediss+cluster://u:p@a,b:1/0");
    assert_eq!(cluster, Deployment::Cluster(hosts(&["a:6379", "b:1"])));
    let text = "redis+sentinel://u:p@a,b:1/one,two/3?sentinel_password=x";
    let login = Login { password: "x".into(), ..Login::default() };
    let (sentinels, masters) = (hosts(&["a:26379", "b:1"]), hosts(&["one", "two"]));
    assert_eq!(deployment(text), Deployment::Sentinel { sentinels, masters, login });
}

#[test]
fn the_url_of_one_server_has_what_stood_before_and_behind_all_of_them() {
    for (text, url) in [
        ("rediss://u:p%40@a,b:1/3", "rediss://u:p%40@x:9/3"),
        ("redis://u:a:b+c@a/0", "redis://u:a%3Ab%2Bc@x:9"),
        ("redis+sentinel://:p@a/m/2?sentinel_user=s&sentinel_password=q", "redis://:p@x:9/2"),
        ("redis+cluster://a", "redis://x:9"),
        ("redis://a?protocol=resp3", "redis://x:9"),
    ] {
        assert_eq!(servers(text).login.url("x:9"), url);
    }
    let text = "redis+unix:///a%3Fb/c?password=%26%20&db=4";
    assert_eq!(servers(text).login.url("/a?b/c"), "redis+unix:///a%3Fb/c?db=4&pass=%26%20");
}

#[test]
fn the_database_is_a_number_in_each_form_that_has_databases() {
    for (text, db) in [
        ("redis://h", 0),
        ("redis://h/0", 0),
        ("redis://h,i/07", 7),
        ("redis+sentinel://h/m/3/", 3),
        ("redis+sentinel://h/3", 0),
        ("redis+unix:///s?db=15", 15),
        ("redis+cluster://h/0/", 0),
    ] {
        assert_eq!(servers(text).login.db, db, "{text}");
    }
}

/// Each URL with the beginning of its error.
const WRONG: &[(&str, &str)] = &[
    ("", ""),
    ("redis", ""),
    ("redis+://h", "Scheme \"redis+\" is unknown."),
    ("redis+other://h", "Scheme \"redis+other\" is unknown."),
    ("http://h", "Scheme \"http\" is unknown."),
    ("REDIS://h", "Scheme \"REDIS\" is unknown."),
    ("rediss+unix:///s", "There is no TLS through a Unix socket: write redis+unix."),
    ("rediss://h#insecure", "Nothing may follow a #;"),
    // hosts
    ("redis://", "The URL names no host."),
    ("redis:///1", "The URL names no host."),
    ("redis+cluster://", "The URL names no host."),
    ("redis+sentinel:///m", "The URL names no host."),
    ("redis://u:p@", "The URL names no host."),
    ("redis://h,,i", "Host 2 has no name."),
    ("redis://h,", "Host 2 has no name."),
    ("redis://:1", "Host 1 has no name."),
    ("redis://h1, h2", "\" h2\" is no name of a host."),
    ("redis://h\u{e9}", "\"h\u{e9}\" is no name of a host."),
    ("redis://h%31", "\"h%31\" is no name of a host."),
    ("redis://::1", "Host 1 has several colons:"),
    ("redis://[::1", "\"[::1\" is no IPv6 address."),
    ("redis://[h]", "\"[h]\" is no IPv6 address."),
    ("redis://[::1]x:1", "\"[::1]x:1\" is no IPv6 address."),
    ("redis://[::]", "[::] is every address"),
    ("redis://0.0.0.0:1", "0.0.0.0 is every address"),
    // ports
    ("redis://h:", "The port of host 1 is not a number from 1 to 65535."),
    ("redis://u:p@h:", "Port \"\" of host 1 is not a number from 1 to 65535."),
    ("redis://u:p@h:x", "Port \"x\" of host 1 is not"),
    ("redis://g,h:0", "Port \"0\" of host 2 is not"),
    ("redis://h:65536", "Port \"65536\" of host 1 is not"),
    ("redis://h:+1", "The port of host 1 is not"),
    ("redis+sentinel://s:99999/m", "Port \"99999\" of host 1 is not"),
    ("redis+cluster://h,i:-1", "The port of host 2 is not"),
    // doubles
    ("redis://h,h:6379", "The URL names h:6379 twice."),
    ("redis://h,H", "The URL names H:6379 twice."),
    ("redis://h,h:06379", "The URL names h:6379 twice."),
    ("redis://[::1],[0::1]", "The URL names [::1]:6379 twice."),
    ("redis+sentinel://s,s:26379/m", "The URL names s:26379 twice."),
    ("redis+cluster://h,h", "The URL names h:6379 twice."),
    ("redis+sentinel://h/m,m", "The URL names master \"m\" twice."),
    // users and passwords
    ("redis://@h", "No password stands before the @:"),
    ("redis://:@h", "No password stands before the @:"),
    ("redis://secret@h", "No password stands before the @:"),
    ("redis://secret:@h", "No password stands before the @:"),
    ("redis://u:secret%@h", "The password has a % without two hexadecimal digits"),
    ("redis://u:secret%4@h", "The password has a % without"),
    ("redis://u:%zzsecret@h", "The password has a % without"),
    ("redis://%+1secret:p@h", "The user has a % without"),
    ("redis://:%ffsecret@h", "The password is not UTF-8 after"),
    ("redis://%ff:secret@h", "The user is not UTF-8 after"),
    ("redis://u:secret@h,u:secret@i", "An @ stands there twice:"),
    ("redis://u:se@cret@h", "An @ stands there twice:"),
    ("redis://u:secret/x@h", "An @ stands behind the hosts."),
    ("redis://u:secret?x@h", "An @ stands behind the hosts."),
    ("redis://:secret", "Host 1 has no name."),
    ("redis://u:secret", "The port of host 1 is not"),
    ("redis+sentinel://h/m?sentinel_user=secret", "sentinel_user needs a sentinel_password."),
    ("redis+sentinel://h/m?sentinel_password=%secret", "The value of parameter sentinel_password"),
    ("redis+unix:///s?user=secret", "user needs a password."),
    ("redis+unix:///s?password=secret%f", "The value of parameter password has a %"),
    // databases, masters, paths
    ("redis://h/x", "Database \"x\" is not a number from 0 to 2147483647."),
    ("redis://h/-1", "Database \"-1\" is not"),
    ("redis://h/+1", "Database \"+1\" is not"),
    ("redis://h/2147483648", "Database \"2147483648\" is not"),
    ("redis://h,i/1/2", "\"2\" behind the database has no meaning."),
    ("redis://h//1", "Nothing stands between two slashes of the path."),
    ("redis+cluster://h/1", "A Cluster has only database 0: leave out /1,"),
    ("redis+cluster://h/x", "Database \"x\" is not"),
    ("redis+sentinel://h", "The URL names no master after the sentinels."),
    ("redis+sentinel://h/", "The URL names no master after the sentinels."),
    ("redis+sentinel://h/m,", "The name of a master is empty."),
    ("redis+sentinel://h/m%20", "\"m%20\" cannot be the name of a master."),
    ("redis+sentinel://h/m n", "\"m n\" cannot be the name of a master."),
    ("redis+sentinel://h/m/x", "Database \"x\" is not"),
    ("redis+sentinel://h/m/1/2", "\"2\" behind the database has no meaning."),
    ("redis+unix://", "The URL names no socket:"),
    ("redis+unix:///", "The URL names no socket:"),
    ("redis+unix:///run/", "The URL names no socket:"),
    ("redis+unix:///%00", "The path /\\0 has a control character."),
    ("redis+unix:///%x", "The path has a % without"),
    ("redis+unix://h/s", "Nothing stands before the path of a Unix socket:"),
    ("redis+unix://u:p@/s", "Nothing stands before the path of a Unix socket:"),
    ("redis+unix:///s?db=x", "Database \"x\" is not"),
    // parameters
    ("redis://h?", "Nothing stands behind the ?."),
    ("redis+cluster://h?", "Nothing stands behind the ?."),
    ("redis://h?db=1", "Parameter db is unknown; known are protocol."),
    ("redis://h?secret%=1", "A parameter is unknown; known are protocol."),
    ("redis://h?protocol=resp2", "Parameter protocol is \"resp2\"; only resp3 is spoken."),
    ("redis://h?protocol", "Parameter protocol has no value."),
    ("redis://h?protocol=", "Parameter protocol has no value."),
    ("redis://h?protocol=3&protocol=3", "Parameter protocol is there twice."),
    ("redis://h?&protocol=3", "A parameter between two & is empty."),
    ("redis+cluster://h?protocol=3", "Parameter protocol is unknown: URLs of this form have none."),
    (
        "redis+sentinel://h/m?password=secret",
        "Parameter password is unknown; known are sentinel_user, sentinel_password.",
    ),
    (
        "redis+sentinel://h/m?sentinel_password=a&sentinel_password=secret",
        "Parameter sentinel_password is there twice.",
    ),
    (
        "redis+unix:///s?timeout=1",
        "Parameter timeout is unknown; known are db, user, password, protocol.",
    ),
    ("redis+unix:///s?pass=a&password=secret", "Parameter password is there twice."),
    ("redis+unix:///s?db=", "Parameter db has no value."),
];

#[test]
fn whatever_names_no_servers_is_refused_with_what_is_wrong_and_without_secrets() {
    for (text, beginning) in WRONG {
        let error = RedisServers::read(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
        assert!(error.starts_with(beginning), "{text}: {error}");
        assert!(!error.contains("secret"), "{text}: {error}");
        assert!(error.is_empty() || error.ends_with(". "), "{text}: what would be right follows");
    }
}

#[test]
fn the_path_of_a_socket_is_as_long_as_the_kernel_takes() {
    let of = |bytes: usize| format!("redis+unix:///{}", "s".repeat(bytes - 1));
    assert!(RedisServers::read(&of(107)).is_ok());
    let error = RedisServers::read(&of(108)).unwrap_err();
    assert!(error.starts_with("The path has 108 bytes;"), "{error}");
}

#[test]
fn nothing_that_is_shown_has_a_password() {
    for text in [
        "redis+sentinel://u:hunter2@a/m?sentinel_password=hunter2",
        "redis+unix:///s?password=hunter2",
    ] {
        let shown = format!("{:?} {:?}", servers(text), deployment(text));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

/// It is shown because it is refused, and it is refused because of the password in it.
#[test]
fn a_password_that_should_have_been_encoded_is_not_shown_either() {
    for text in [
        "redis://:hun#ter2@h",
        "redis://:hun?ter2@h",
        "redis://u:hun/ter2@h:1/0",
        "redis://u:hun@ter2@h",
        "redis://u:hunter2",
        "redis://:hunter2,h",
        "u:hun#ter2@h",
        "redis+sentinel://a/m?sentinel_password=hun@ter2",
        "redis+unix:///s?password=hun@ter2",
    ] {
        let error = RedisServers::read(text).expect_err(text);
        for shown in [redact_url(text), error] {
            assert!(!shown.contains("hun") && !shown.contains("ter2"), "{text}: {shown}");
        }
    }
    assert_eq!(redact_url("redis://u:p@h:1,[::1]:2/3?x"), "redis://***@h:1,[::1]:2/3");
    assert_eq!(redact_url("redis://h:1,[::1]/3"), "redis://h:1,[::1]/3");
    assert_eq!(redact_url("redis+unix:///a/b?password=x"), "redis+unix:///a/b");
}

/// Parts that URLs have.
const PARTS: &[&str] = &[
    "redis",
    "rediss",
    "+sentinel",
    "+cluster",
    "+unix",
    "://",
    "/",
    "@",
    ":",
    ",",
    "?",
    "&",
    "=",
    "#",
    "%",
    "%40",
    "%ff",
    "h",
    "[::1]",
    "[",
    "]",
    "6379",
    "0",
    "3",
    "u",
    "p",
    "m",
    "protocol",
    "resp3",
    "db",
    "user",
    "pass",
    "password",
    "sentinel_user",
    "sentinel_password",
    " ",
    "\0",
    "é",
    "+",
    "-",
];

/// Texts of such parts, in any order.
fn like_a_url() -> impl Strategy<Value = String> {
    let parts = prop::collection::vec(prop::sample::select(PARTS), 0..20);
    (parts, prop::option::of(any::<String>()))
        .prop_map(|(parts, any)| parts.concat() + &any.unwrap_or_default())
}

/// URLs that are accepted, from what they are to mean.
fn good_url() -> impl Strategy<Value = (String, Login)> {
    let login = (any::<bool>(), 0..20u32, "\\PC{0,8}", "\\PC{0,8}");
    (login, 0..4u8, 1..4usize).prop_map(|((is_tls, db, user, password), form, count)| {
        let user = if password.is_empty() { String::new() } else { user };
        let db = if form == 2 { 0 } else { db };
        let is_tls = is_tls && form != 3;
        let login = Login { is_tls, db, user, password };
        if form == 3 {
            return (login.url("/run/s"), login);
        }
        let hosts: Vec<String> = (0..count).map(|host| format!("h{host}")).collect();
        let middle = if form == 1 { "/m" } else { "" };
        let kind = ["", "+sentinel", "+cluster"][usize::from(form)];
        let url = login.url("hosts").replace("://", &format!("{kind}://"));
        // Behind the password: it has no `/` that is not encoded.
        let url = match url.rsplit_once("hosts") {
            Some((before, behind)) => format!("{before}{}{middle}{behind}", hosts.join(",")),
            None => url,
        };
        (url, login)
    })
}

proptest! {
    #[test]
    fn any_text_is_accepted_or_refused(text in like_a_url(), any in any::<String>()) {
        let _ = (redact_url(&text), redact_url(&any), RedisServers::read(&any));
        let Ok(servers) = RedisServers::read(&text) else { return Ok(()) };
        prop_assert_eq!(servers.text(), &text);
        prop_assert!(!servers.addresses().is_empty());
    }

    #[test]
    fn a_url_means_what_it_was_made_from((url, login) in good_url()) {
        let servers = RedisServers::read(&url);
        prop_assert!(servers.is_ok(), "{}: {:?}", url, servers);
        prop_assert!(servers.unwrap().login == login, "{}", url);
    }

    #[test]
    fn the_url_of_one_server_is_accepted_again_with_the_same_meaning(
        text in prop_oneof![like_a_url(), good_url().prop_map(|(url, _)| url)],
    ) {
        let Ok(servers) = RedisServers::read(&text) else { return Ok(()) };
        for address in servers.addresses() {
            let url = servers.login.url(address);
            let again = RedisServers::read(&url);
            prop_assert!(again.is_ok(), "{} of {}: {:?}", url, text, again);
            let again = again.unwrap();
            prop_assert!(again.login == servers.login, "{} of {}", url, text);
            prop_assert_eq!(again.addresses(), std::slice::from_ref(address));
        }
    }
}
