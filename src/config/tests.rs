use super::*;
use crate::config::settings::setting;
use crate::policy::limits::Limits;
use crate::policy::namespaces::Policy;
use crate::policy::setting::SettingRange;

fn sources(
    flags: &[(&'static str, &str)],
    env: &[(&str, &str)],
    file: Option<&str>,
) -> ConfigSources {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    ConfigSources {
        flags: flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
        env: env.iter().map(owned).collect(),
        file: file.map(|text| FileText { path: "f.toml".into(), text: text.into() }),
    }
}

fn by_flag(key: &'static str, value: &str) -> Result<Config, ConfigErrors> {
    Config::load(&sources(&[(key, value)], &[], None))
}

fn complaint(sources: &ConfigSources) -> String {
    Config::load(sources).expect_err("this must be refused").to_string()
}

/// For every setting about load balancers: some good values, and some bad ones.
fn table_of_proxies() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    vec![
        (
            "ops.public_paths",
            vec![""],
            vec!["/metrics", "/v1/", "v1/publish", "/v1/rooms/", "/v1/publish"],
        ),
        ("rejected_handshakes", vec!["http", "close"], vec!["", "on", "HTTP"]),
        ("proxy_protocol", vec!["off"], vec!["", "on", "optional", "required"]),
        (
            "trusted_proxies",
            vec!["", "10.0.0.0/8", "192.0.2.7, 2001:db8::/32"],
            vec!["10.0.0.1/8", "10.0.0.0/33", "lb.example", "10.0.0.0-9"],
        ),
    ]
}

/// For every setting: some good values, and some bad ones.
fn table() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    let mut table = table_of_the_node();
    table.extend(table_of_proxies());
    table.extend(table_of_auth());
    table.extend(table_of_claims());
    table.extend(table_of_redis());
    table.extend(table_of_hooks());
    let limits = SETTINGS.iter().filter(|setting| setting.key.starts_with("limits."));
    table.extend(limits.map(|setting| {
        let leaked = |text: String| Box::leak(text.into_boxed_str()) as &str;
        let ValueKind::Plain(SettingRange::Number { min, max, .. }) = setting.kind else {
            panic!("{} is a number", setting.key)
        };
        // One below the least, and one beyond the most.
        let below = leaked((i128::from(min) - 1).to_string());
        let beyond = leaked((i128::from(max) + 1).to_string());
        (setting.key, vec![leaked(setting.default_text())], vec![below, beyond, "many", "", "1.0"])
    }));
    table
}

/// Where the claims of a token stand.
fn table_of_claims() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    vec![
        ("auth.required_claims", vec!["", "token_use=access, azp=web"], vec!["a\nb"]),
        ("auth.user_claim", vec!["", "cognito:username"], vec!["a\nb"]),
        ("auth.rooms_claim", vec!["", "https://example.com/rooms"], vec!["a\nb"]),
        ("auth.send_claim", vec!["", "app_metadata.send"], vec![" x"]),
        ("auth.rights_claim", vec!["", "resource_access.campanile.roles"], vec!["a\nb"]),
    ]
}

/// Of the node itself.
fn table_of_the_node() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    vec![
        (
            "listen",
            vec!["127.0.0.1:0", "[::]:8080"],
            vec!["port", "localhost", "", "1.2.3.4:70000"],
        ),
        ("ops.listen", vec!["127.0.0.1:1"], vec![":x", "x:1", "localhost"]),
        (
            "backplane",
            vec![
                "memory",
                "redis://h",
                "rediss://u:p@h:6380/1",
                "redis://[::1]:6379,i",
                "redis+sentinel://u:p@h,i:1/m,n/3?sentinel_password=x",
                "rediss+cluster://h,i:1",
            ],
            vec!["", "redis:///0", "http://h", "redis://h,h", "redis+sentinel://h"],
        ),
        ("shards", vec!["0", "60"], vec!["-1", "1025", "two", "1.5"]),
        ("cores", vec!["", "0", "0-3,6"], vec!["3-0", "a", "0,0", "0-2,1", "0-99999999", "-"]),
        ("private_fd_tables", vec!["true", "false"], vec!["yes", "1", ""]),
        ("scheduling", vec!["auto", "batch", "other"], vec!["", "fifo", "Batch"]),
        ("backplane_priority", vec!["0", "20"], vec!["-1", "21"]),
        ("steering", vec!["even", "cpu", "kernel"], vec!["", "random", "Even"]),
        (
            "namespaces",
            vec!["", "chat: history_size=10, join=users; default: recovery=false"],
            vec!["chat", "chat: size=1", "chat: history_size=-1", "a b: recovery=true"],
        ),
        ("echo_path", vec!["", "/echo"], vec!["echo", "/a b", "/a?b", "/", "/ws"]),
        ("page", vec!["true", "false"], vec!["on"]),
        (
            "origins",
            vec!["", "https://a.example", "https://a:1,http://b", "null", "https://a/", "*"],
            vec!["a.example", "https://", "https://a/b", "https://*.a"],
        ),
        ("drain_ms", vec!["0", "10000"], vec!["3600001", "10s"]),
        ("node.name", vec!["", "node-1"], vec!["a\nb"]),
        (
            "ops.api_key",
            vec!["", "1234567890123456", "12345678 90123456"],
            vec!["123456789012345", " 1234567890123456", "1234567890123456é", "12345678\t90123456"],
        ),
        ("ops.api_key_file", vec![""], vec!["/nowhere"]),
        ("listen_direct", vec!["true", "false"], vec!["yes"]),
        ("log.level", vec!["error", "debug"], vec!["", "loud"]),
        ("log.format", vec!["text", "json"], vec!["xml"]),
    ]
}

/// Of tokens.
fn table_of_auth() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    vec![
        ("auth.anonymous", vec!["auto", "true"], vec!["", "maybe", "false"]),
        ("auth.hmac_secret", vec!["1234567890123456"], vec!["", "123456789012345", "\n"]),
        ("auth.hmac_secret_file", vec![""], vec!["/nowhere"]),
        ("auth.keys_file", vec![""], vec!["/nowhere"]),
        (
            "auth.jwks_url",
            vec!["", "https://example.eu.auth0.com/.well-known/jwks.json"],
            vec!["a.example", "ftp://a/", "http://u:p@a/", " x"],
        ),
        ("auth.jwks_tls_ca_file", vec!["", "/etc/ssl/ca.pem"], vec!["a\nb"]),
        ("auth.jwks_timeout_ms", vec!["100", "60000"], vec!["99", "60001"]),
        ("auth.jwks_refresh_min_s", vec!["1", "3600"], vec!["0", "3601"]),
        ("auth.jwks_refresh_max_s", vec!["1", "86400"], vec!["0", "86401"]),
        ("auth.issuer", vec!["", "https://example.eu.auth0.com/"], vec![" x", "a\nb"]),
        ("auth.audience", vec!["", "https://api.example"], vec!["a\nb"]),
        ("auth.leeway_s", vec!["0", "600"], vec!["-1", "601"]),
        ("auth.first_message_timeout_ms", vec!["0"], vec!["-1", "600001", "5000"]),
        ("auth.expiry_notice_s", vec!["0", "86400"], vec!["-1", "86401"]),
        ("auth.allow_weak_secret", vec!["true", "false"], vec!["", "1"]),
        (
            "auth.anonymous_rights",
            vec!["auto", "", "publish", "publish, send"],
            vec!["fly", "publish,fly"],
        ),
        ("auth.user_rights", vec!["", "broadcast,publish_unjoined"], vec!["auto", "Publish"]),
    ]
}

/// Of hooks.
fn table_of_hooks() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    let good = ["", "http://127.0.0.1:9000/hook", "https://a.example/b?c=d", "http://[::1]:9/"];
    let bad = ["a.example", "ftp://a/", "http://", "http:///a", "http://u:p@a/", "http://a b"];
    let url = |key| (key, good.to_vec(), bad.to_vec());
    vec![
        url("hooks.connect_url"),
        ("hooks.join_url", vec![""], [&bad[..], &["http://a/"]].concat()),
        ("hooks.publish_url", vec![""], [&bad[..], &["http://a/"]].concat()),
        ("hooks.headers", vec!["", "cookie,x-tenant"], vec!["a b", "x:y"]),
        ("hooks.secret", vec!["", "1234567890123456"], vec!["123456789012345"]),
        ("hooks.secret_file", vec![""], vec!["/nowhere"]),
        ("hooks.tls_ca_file", vec!["", "/etc/ssl/hooks-ca.pem"], vec!["a\nb"]),
        ("hooks.on_failure", vec!["deny", "allow"], vec!["", "maybe"]),
        ("hooks.timeout_ms", vec!["10", "60000"], vec!["9", "60001"]),
        ("hooks.waiting_timeout_ms", vec!["10"], vec!["9"]),
        ("hooks.concurrency_max", vec!["1"], vec!["0", "65537"]),
        ("hooks.waiting_max", vec!["1"], vec!["0"]),
        ("hooks.waiting_bytes_max", vec!["65536"], vec!["65535"]),
        ("hooks.answer_bytes_max", vec!["256"], vec!["255"]),
        ("hooks.cache_bytes_max", vec!["0"], vec!["-1"]),
        ("hooks.circuit_failures", vec!["1"], vec!["0"]),
        ("hooks.circuit_open_ms", vec!["10"], vec!["9"]),
    ]
}

/// Of Redis.
fn table_of_redis() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    vec![
        ("redis.prefix", vec!["campanile", "a.b_c-d:e"], vec!["", "{a}", "a b", "é"]),
        ("redis.linger_ms", vec!["0"], vec!["-1", "99999999999999999999"]),
        ("redis.canary_interval_ms", vec!["50", "1000"], vec!["49", "1001"]),
        ("redis.canary_timeout_ms", vec!["2000"], vec!["99", "1000", "1999"]),
        ("redis.timeout_ms", vec!["50"], vec!["49"]),
        ("redis.backoff_ms_max", vec!["10"], vec!["9"]),
        ("redis.tls_ca_file", vec!["", "/etc/ssl/redis-ca.pem"], vec!["a\nb"]),
        ("redis.monitor_interval_ms", vec!["0", "60000"], vec!["-1", "600001"]),
    ]
}

#[test]
fn every_setting_takes_what_is_good_and_refuses_what_is_not_saying_what_would_be() {
    let table = table();
    for setting in SETTINGS {
        let (_, good, bad) = table
            .iter()
            .find(|(key, ..)| *key == setting.key)
            .unwrap_or_else(|| panic!("{} is not in the test's table", setting.key));
        for value in good {
            let config = by_flag(setting.key, value).unwrap_or_else(|error| panic!("{error}"));
            let again = by_flag(setting.key, &setting.text(&config)).unwrap();
            assert_eq!(config, again, "{} = {value:?} is written as it is read", setting.key);
        }
        for value in bad {
            let error = match by_flag(setting.key, value) {
                Ok(_) => panic!("{} took {value:?}", setting.key),
                Err(ConfigErrors(errors)) => errors[0].clone(),
            };
            let text = error.to_string();
            assert!(text.contains(setting.key), "the key: {text}");
            if let ConfigError::BadValue { .. } = error {
                let shown = format!("{:?}", setting.shown(value));
                assert!(text.contains(&shown), "the value {shown}: {text}");
                assert!(text.contains(&setting.kind.wanted()), "the range: {text}");
                assert!(text.contains(&format!("--{}", setting.flag())), "the source: {text}");
            }
        }
    }
}

#[test]
fn a_connection_is_never_in_so_many_rooms_that_looking_through_them_takes_long() {
    let key = "limits.rooms_per_connection_max";
    assert_eq!(by_flag(key, "1024").unwrap().limits.rooms_per_connection_max, 1024);
    assert!(complaint(&sources(&[(key, "1025")], &[], None)).contains("1 to 1024"));
}

#[test]
fn every_limit_is_a_setting_with_its_own_field() {
    let fields = format!("{:?}", Limits::PRODUCTION);
    let fields = fields.trim_start_matches("Limits { ").trim_end_matches(" }");
    let fields: Vec<_> = fields.split(", ").filter_map(|field| field.split_once(": ")).collect();
    assert!(fields.len() > 10, "{fields:?}");
    for (name, default) in fields {
        let setting =
            setting(&format!("limits.{name}")).unwrap_or_else(|| panic!("{name} is no setting"));
        assert_eq!(setting.default_text(), default);
        assert_eq!(setting.text(&Config::default()), default);
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default() {
    let file = Some("drain_ms = 3\n[limits]\nhead_bytes_max = 2_048\n");
    let env = [("CAMPANILE_DRAIN_MS", "2")];
    let of = |sources: ConfigSources| Config::load(&sources).unwrap().drain_ms;
    assert_eq!(of(sources(&[("drain_ms", "1")], &env, file)), 1);
    assert_eq!(of(sources(&[], &env, file)), 2);
    assert_eq!(of(sources(&[], &[], file)), 3);
    assert_eq!(of(sources(&[], &[], None)), 10_000);
    assert_eq!(Config::load(&sources(&[], &[], file)).unwrap().limits.head_bytes_max, 2048);
}

#[test]
fn every_setting_can_be_set_by_its_variable_and_by_its_key() {
    for (key, good, _) in table() {
        let (setting, value) = (setting(key).unwrap(), good[good.len() - 1]);
        let by_flag = by_flag(key, value).unwrap();
        let by_env = Config::load(&sources(&[], &[(&setting.env(), value)], None)).unwrap();
        assert_eq!(by_env, by_flag, "{key}");
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let file = format!("{head}{name} = {value:?}\n");
        let by_file = Config::load(&sources(&[], &[], Some(&file))).unwrap();
        assert_eq!(by_file, by_flag, "{key}");
    }
}

#[test]
fn flags_and_variables_are_spelled_apart() {
    for spell in [Setting::flag, Setting::env] {
        let mut names: Vec<_> = SETTINGS.iter().map(spell).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
    }
}

#[test]
fn lists_in_a_file_are_lists() {
    let file = "origins = [\"https://a\", \"https://b\"]\n[auth]\nuser_rights = [\"send\"]\n";
    let config = Config::load(&sources(&[], &[], Some(file))).unwrap();
    assert_eq!(config.origins.0, ["https://a", "https://b"]);
    assert_eq!(config.auth_user_rights.names(), ["send"]);
    let cores = Config::load(&sources(&[], &[], Some("cores = [0, 2]"))).unwrap().cores;
    assert_eq!(cores, [0, 2]);
}

#[test]
fn the_sample_says_what_is_the_case_anyway() {
    let sample = sample();
    let config = Config::load(&sources(&[], &[], Some(&sample))).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config, Config::default());
    for setting in SETTINGS {
        let name = setting.key.rsplit('.').next().unwrap();
        if !matches!(setting.kind, ValueKind::Namespaces) {
            // Set to nothing a secret would be refused.
            let comment = if matches!(setting.kind, ValueKind::Secret) { "# " } else { "" };
            assert!(sample.contains(&format!("\n{comment}{name} = ")), "{}", setting.key);
        }
        assert!(markdown().contains(&format!("| `{}` |", setting.key)), "{}", setting.key);
    }
    assert!(sample.lines().all(|line| line.chars().count() <= 100), "a narrow screen shows it");
}

#[test]
fn a_namespace_is_a_table_of_the_file_and_each_wrong_line_is_named() {
    let file = "page = true\n[namespaces.chat]\nhistory_size = 7\njoin = \"users\"\n\
                [namespaces.default]\nrecovery = false\n";
    let config = Config::load(&sources(&[], &[], Some(file))).unwrap();
    assert_eq!(config.namespaces.policy_of_room("chat:a").history_size, 7);
    assert!(!config.namespaces.policy_of_room("a").recovery);
    let text = "chat: history_size=7, join=users; default: recovery=false";
    assert_eq!(by_flag("namespaces", text).unwrap().namespaces, config.namespaces);
    let file =
        "[auth]\nhmac_secret = \"1234567890123456\"\n[namespaces.\"@users\"]\nhistory_size = 9\n";
    let config = Config::load(&sources(&[], &[], Some(file))).unwrap();
    assert!(config.namespaces.keep_for_users());
    let file = "[namespaces.\"@users\"]\npresence = true\n";
    let text = complaint(&sources(&[], &[], Some(file)));
    assert!(text.contains("f.toml:2") && text.contains("history_size and history_ttl_s"), "{text}");
    let file = "[namespaces.chat]\nhistory_size = -1\nsize = 3\n[namespaces]\nx = 1\n";
    let text = complaint(&sources(&[], &[], Some(file)));
    for (line, wanted) in [(2, "from 0 to 100000"), (3, "history_size"), (5, "not a table")] {
        let error = text.lines().find(|error| error.contains(&format!("f.toml:{line}")));
        assert!(error.is_some_and(|error| error.contains(wanted)), "{line}: {text}");
    }
    let sample = sample();
    let (keys, example) = sample.split_once("# [namespaces.chat]\n").expect("there is an example");
    let example = example.lines().map(|line| line.strip_prefix("# ").expect("a comment"));
    let example = format!("{keys}[namespaces.chat]\n{}", example.collect::<Vec<_>>().join("\n"));
    let config = Config::load(&sources(&[], &[], Some(&example))).unwrap_or_else(|e| panic!("{e}"));
    let named: Vec<_> = config.namespaces.named().collect();
    assert_eq!(named, [("chat", &Policy::DEFAULT)], "it says what is the case anyway");
}

#[test]
fn a_misspelt_key_is_answered_with_the_one_that_was_meant() {
    for (file, line, meant) in [
        ("[limits]\n\nmesage_bytes_max = 1\n", 3, "limits.message_bytes_max"),
        ("message_bytes_max = 1\n", 1, "limits.message_bytes_max"),
        ("listn = \"0.0.0.0:1\"\n", 1, "listen"),
        ("page = true\n[auth]\nhmac-secret = \"x\"\n", 3, "auth.hmac_secret"),
    ] {
        let text = complaint(&sources(&[], &[], Some(file)));
        assert!(text.contains(&format!("f.toml:{line}")), "{text}");
        assert!(text.contains(&format!("Did you mean {meant}?")), "{text}");
    }
    let text = complaint(&sources(&[], &[("CAMPANILE_DRAIN_MSS", "1")], None));
    assert!(text.contains("Did you mean CAMPANILE_DRAIN_MS?"), "{text}");
    let text = complaint(&sources(&[], &[], Some("[limit]\nhead_bytes_max = 1\n")));
    assert!(text.contains("unknown key limit (f.toml:1)"), "{text}");
    let text = complaint(&sources(&[], &[], Some("entirely_something_else = 1")));
    assert!(!text.contains("Did you mean"), "{text}");
}

#[test]
fn variables_that_are_not_ours_are_left_alone() {
    let env = [
        ("PATH", "/bin"),
        ("CAMPANILE_CONFIG", "x"),
        // What Kubernetes sets for services called campanile and campanile-redis.
        ("CAMPANILE_SERVICE_HOST", "10.0.0.1"),
        ("CAMPANILE_SERVICE_PORT_HTTP", "80"),
        ("CAMPANILE_PORT", "tcp://10.0.0.1:80"),
        ("CAMPANILE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("CAMPANILE_REDIS_SERVICE_HOST", "10.0.0.2"),
        ("CAMPANILE_REDIS_PORT", "tcp://10.0.0.2:6379"),
    ];
    assert_eq!(Config::load(&sources(&[], &env, None)).unwrap(), Config::default());
}

#[test]
fn all_errors_are_reported_at_once() {
    let sources =
        sources(&[("shards", "x")], &[("CAMPANILE_PAGE", "x")], Some("drain_ms = 1.5\nfoo = 1"));
    let ConfigErrors(errors) = Config::load(&sources).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
    let text = ConfigErrors(errors).to_string();
    assert!(text.contains("drain_ms = \"a fraction\" (f.toml:1)"), "{text}");
    assert!(text.contains("CAMPANILE_PAGE"), "{text}");
    for huge in ["99999999999999999999", "0x99999999999999999"] {
        let file = format!("drain_ms = {huge}");
        let text = complaint(&super::tests::sources(&[], &[], Some(&file)));
        assert!(text.contains(&format!("drain_ms = \"{huge}\" (f.toml:1)")), "{text}");
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let text = complaint(&sources(&[], &[], Some("page = true\nlisten = \n")));
    assert!(text.contains("f.toml: line 2"), "{text}");
}

#[test]
fn what_contradicts_itself_is_refused_naming_both_keys() {
    for (flags, keys) in [
        (vec![("auth.anonymous", "false")], ["auth.anonymous", "auth.hmac_secret"]),
        (
            vec![("limits.outbox_bytes_max", "1024")],
            ["limits.outbox_bytes_max", "limits.message_bytes_max"],
        ),
        (
            vec![("redis.canary_timeout_ms", "500")],
            ["redis.canary_timeout_ms", "redis.canary_interval_ms"],
        ),
        (
            vec![("namespaces", "a: history_size=1"), ("limits.outbox_bytes_max", "100000")],
            ["limits.outbox_bytes_max", "limits.recovery_bytes_max"],
        ),
        (vec![("namespaces", "a: acks=true")], ["acks", "history_size"]),
        (vec![("namespaces", "@users: history_size=1")], ["@users", "auth.hmac_secret"]),
        (vec![("listen", "127.0.0.1:7"), ("ops.listen", "127.0.0.1:7")], ["listen", "ops.listen"]),
    ] {
        let text = complaint(&sources(&flags, &[], None));
        assert!(keys.iter().all(|key| text.contains(key)), "{text}");
    }
    let both = [("auth.anonymous", "false"), ("auth.hmac_secret", "1234567890123456")];
    assert!(Config::load(&sources(&both, &[], None)).is_ok());
}

#[test]
fn no_message_and_no_log_shows_a_secret() {
    let secret = "hunter2-hunter2-hunter2";
    let url = "redis+sentinel://user:hunter2-hunter2-hunter2@h:6379/m/0\
               ?sentinel_password=hunter2-hunter2-hunter2";
    let flags = [("auth.hmac_secret", secret), ("ops.api_key", secret), ("backplane", url)];
    let config = Config::load(&sources(&flags, &[], None)).unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains(secret), "{shown}");
    assert!(shown.contains("redis+sentinel://***@h:6379/m/0"), "{shown}");
    for (key, wrong) in [("auth.hmac_secret", "hunter2"), ("backplane", "redi://a:hunter2@h")] {
        let text = complaint(&sources(&[(key, wrong)], &[], None));
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn origins_become_what_browsers_send_or_say_what_to_write() {
    let read = |text: &str| {
        let flags = vec![("origins", text.to_owned())];
        let loaded = Config::load(&ConfigSources { flags, ..ConfigSources::default() });
        loaded.map(|config| config.origins.0).map_err(|errors| errors.to_string())
    };
    for (written, sent) in [
        ("https://Example.ORG", "https://example.org"),
        ("https://example.org/", "https://example.org"),
        ("https://example.org:443", "https://example.org"),
        ("http://example.org:80/", "http://example.org"),
        ("http://example.org:8080", "http://example.org:8080"),
        ("http://[2001:DB8::1]:3000", "http://[2001:db8::1]:3000"),
        ("http://[::1]", "http://[::1]"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("null", "null"),
        ("*", "*"),
    ] {
        assert_eq!(read(written), Ok(vec![sent.to_owned()]), "{written}");
    }
    for (wrong, wanted) in [
        ("example.org", "https://"),
        ("https://example.org/chat", "write https://example.org"),
        ("https://user@example.org", "scheme, a host and a port"),
        ("https://*.example.org", "wildcard"),
        ("https://exämple.org", "xn--"),
        ("https://example.org:99999", "port"),
        ("https://", "no host"),
    ] {
        let error = read(wrong).expect_err(wrong);
        assert!(error.contains(wanted), "{wrong}: {error}");
    }
}

#[test]
fn a_secret_that_can_be_guessed_or_was_forgotten_is_refused() {
    for key in ["auth.hmac_secret", "ops.api_key"] {
        let text = complaint(&sources(&[(key, "123456789012345")], &[], None));
        assert!(text.contains("15 bytes") && text.contains("openssl rand"), "{text}");
        let weak = [(key, "1"), ("auth.allow_weak_secret", "true")];
        assert!(Config::load(&sources(&weak, &[], None)).is_ok());
    }
    let blank = [("CAMPANILE_AUTH_HMAC_SECRET", "")];
    let text = complaint(&sources(&[], &blank, None));
    assert!(text.contains("auth.anonymous = true"), "{text}");
    assert!(Config::load(&sources(&[("auth.anonymous", "true")], &blank, None)).is_ok());
    let file = "[auth]\nhmac_secret = \"\"\n";
    assert!(complaint(&sources(&[], &[], Some(file))).contains("set to nothing"));
    let later = [("auth.hmac_secret", "1234567890123456")];
    assert!(Config::load(&sources(&later, &blank, None)).is_ok(), "a flag wins");
}

#[test]
fn secrets_may_stand_in_files_and_line_breaks_behind_them_are_no_part_of_them() {
    let files = |path: &str| match path {
        "/run/good" => Ok("1234567890123456\r\n".to_owned()),
        "/run/weak" => Ok("1234\n".to_owned()),
        "/run/blank" => Ok("\n".to_owned()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    let load = |flags: &[(&'static str, &str)]| {
        let loaded = Config::load_reading(&sources(flags, &[], None), &files);
        loaded.map_err(|errors| errors.to_string())
    };
    let config = load(&[("auth.hmac_secret_file", "/run/good"), ("ops.api_key_file", "/run/good")]);
    let config = config.unwrap();
    assert_eq!(config.auth_hmac_secret.as_deref(), Some("1234567890123456"));
    assert_eq!(config.ops_api_key.as_deref(), Some("1234567890123456"));
    assert_eq!(config.secrets_trimmed, [] as [&str; 0], "a file ends with one");
    let config = load(&[("auth.hmac_secret", "1234567890123456\n")]).unwrap();
    assert_eq!(config.auth_hmac_secret.as_deref(), Some("1234567890123456"));
    assert_eq!(config.secrets_trimmed, ["auth.hmac_secret"]);
    for (path, wanted) in
        [("/run/weak", "4 bytes"), ("/run/blank", "empty"), ("/run/none", "cannot be read")]
    {
        let text = load(&[("auth.hmac_secret_file", path)]).unwrap_err();
        assert!(text.contains(wanted), "{text}");
    }
    let both = [("auth.hmac_secret", "1234567890123456"), ("auth.hmac_secret_file", "/run/good")];
    assert!(load(&both).unwrap_err().contains("both set"));
}

#[test]
fn an_address_may_be_a_port_or_localhost() {
    for (written, meant) in [
        ("8081", "0.0.0.0:8081"),
        (":8081", "0.0.0.0:8081"),
        ("localhost:8081", "127.0.0.1:8081"),
        ("[::1]:8081", "[::1]:8081"),
    ] {
        assert_eq!(by_flag("listen", written).unwrap().listen, meant.parse().unwrap());
    }
    for wrong in ["", ":", "99999", ":99999", "localhost:", "example.org:1"] {
        assert!(by_flag("listen", wrong).is_err(), "{wrong:?}");
    }
}
