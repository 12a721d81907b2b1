use super::*;
use crate::config::ConfigSources;
use crate::plan::print::print;

fn machine(cores: &[usize], nofile: u64) -> Machine {
    Machine { node: NodeId(7), cores: cores.to_vec(), nofile, memory_bytes: Some(1 << 40) }
}

fn config(flags: &[(&'static str, &str)]) -> Config {
    let flags = flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    Config::load(&ConfigSources { flags, ..ConfigSources::default() })
        .unwrap_or_else(|error| panic!("{error}"))
}

fn planned(flags: &[(&'static str, &str)], machine: &Machine) -> Planned {
    resolve(&config(flags), machine).unwrap_or_else(|error| panic!("{error}"))
}

fn cores(plan: &Plan) -> Vec<usize> {
    plan.shards.iter().map(|shard| shard.core.unwrap()).collect()
}

const MANY: u64 = 100_000_000;

#[test]
fn there_is_a_shard_for_each_core_unless_the_operator_says_otherwise() {
    let four = machine(&[0, 1, 2, 3], MANY);
    for (flags, shards, others) in [
        (vec![], vec![0, 1, 2, 3], vec![]),
        (vec![("shards", "2")], vec![0, 1], vec![2, 3]),
        (vec![("shards", "6")], vec![0, 1, 2, 3, 0, 1], vec![]),
        (vec![("cores", "1-2")], vec![1, 2], vec![0, 3]),
        (vec![("cores", "2"), ("shards", "3")], vec![2, 2, 2], vec![0, 1, 3]),
        (vec![("cores", "1-3"), ("shards", "1")], vec![1], vec![0, 2, 3]),
    ] {
        let plan = planned(&flags, &four).plan;
        assert_eq!(cores(&plan), shards, "{flags:?}");
        assert_eq!(plan.other_cores, others, "{flags:?}");
        let ids: Vec<_> = plan.shards.iter().map(|shard| usize::from(shard.id.0)).collect();
        assert_eq!(ids, (0..shards.len()).collect::<Vec<_>>());
    }
}

#[test]
fn a_core_that_this_process_may_not_use_is_refused() {
    let error = resolve(&config(&[("cores", "0-4")]), &machine(&[0, 1, 2, 3], MANY)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("core 4"), "{text}");
    assert!(text.contains("[0, 1, 2, 3]"), "{text}");
}

#[test]
fn connections_are_lowered_to_what_the_limit_on_files_allows() {
    let asked = ("limits.connections_per_shard_max", "50000");
    let two = machine(&[0, 1], 20_000);
    let had = |planned: &Planned| planned.plan.limits.connections_per_shard_max as u64;
    let reserve = FILES_OF_NODE + 2 * FILES_OF_SHARD;

    let shared = planned(&[asked], &two);
    assert_eq!(had(&shared), (20_000 - reserve) / 2);
    let notice =
        shared.notices.iter().find(|notice| notice.text.contains("is 9920 instead")).unwrap();
    assert_eq!(notice.level, NoticeLevel::Warning, "a configured number is not reached");
    assert!(notice.text.contains("private_fd_tables"), "{}", notice.text);

    let private = planned(&[asked, ("private_fd_tables", "true")], &two);
    assert_eq!(had(&private), 20_000 - reserve);

    let by_default = planned(&[], &two);
    let notice =
        by_default.notices.iter().find(|notice| notice.text.contains("instead of 1000000"));
    assert_eq!(notice.unwrap().level, NoticeLevel::Debug, "a default is only a bound");

    let enough = planned(&[asked], &machine(&[0, 1], MANY));
    assert_eq!(had(&enough), 50_000);
    assert!(!enough.notices.iter().any(|notice| notice.text.contains("instead")));
}

#[test]
fn a_limit_on_files_that_leaves_no_room_for_a_connection_stops_the_start() {
    let reserve = FILES_OF_NODE + FILES_OF_SHARD;
    assert!(resolve(&config(&[]), &machine(&[0], reserve + 1)).is_ok());
    let text = resolve(&config(&[]), &machine(&[0], reserve)).unwrap_err().to_string();
    assert!(text.contains(&reserve.to_string()), "{text}");
    assert!(text.contains("ulimit -n"), "{text}");
}

#[test]
fn who_may_come_in_follows_from_whether_there_is_a_secret() {
    let secret = ("auth.hmac_secret", "1234567890123456");
    let users = ["publish"];
    for (flags, anonymous, rights) in [
        (vec![], true, &users[..]),
        (vec![("auth.anonymous", "true")], true, &users),
        (vec![secret], false, &users),
        (vec![secret, ("auth.anonymous", "true")], true, &users),
        (vec![secret, ("auth.user_rights", "")], false, &[]),
        (vec![("auth.anonymous_rights", "send")], true, &["send"]),
        (vec![secret, ("auth.anonymous_rights", "broadcast")], false, &["broadcast"]),
    ] {
        let auth = planned(&flags, &machine(&[0], MANY)).plan.auth;
        assert_eq!(auth.anonymous, anonymous, "{flags:?}");
        assert_eq!(auth.anonymous_rights.names(), rights, "{flags:?}");
    }
}

#[test]
fn a_node_without_a_secret_or_with_a_short_one_says_so_loudly() {
    let warned = |flags: &[(&'static str, &str)]| {
        let planned = planned(flags, &machine(&[0], MANY));
        let warnings =
            planned.notices.into_iter().filter(|notice| notice.level == NoticeLevel::Warning);
        warnings.map(|notice| notice.text).collect::<Vec<_>>()
    };
    assert!(warned(&[])[0].contains("EVERY CLIENT"));
    assert!(warned(&[("auth.hmac_secret", "1234567890123456")])[0].contains("32 bytes"));
    let long = "0123456789abcdef0123456789abcdef";
    assert_eq!(warned(&[("auth.hmac_secret", long)]), [] as [String; 0]);
}

#[test]
fn the_bill_names_every_holder_and_sums_them_up() {
    let plan = planned(
        &[
            ("limits.connections_per_shard_max", "1000"),
            ("limits.outbox_bytes_max", "1048576"),
            ("limits.topics_per_shard_max", "1000"),
            ("backplane", "redis://h"),
            ("shards", "2"),
        ],
        &machine(&[0], MANY),
    )
    .plan;
    let budget = MemoryBudget::of(&plan);
    let (uplink, downlink) = (2 * 256 + 4096, 2 * 4096);
    let by_hand = 2000 * 512
        + 2000 * 1_048_576
        + 2000 * 65_536
        + 2 * 4096 * 8192
        + 2000 * 512
        + (uplink + downlink) * (128 + 65_536)
        + 2 * 16_777_216
        + 2 * 262_144
        + 67_108_864;
    assert_eq!(budget.total(), by_hand);
    let text = budget.to_string();
    assert!(text.contains("outboxes 2000 × 1 MiB"), "{text}");
    assert!(text.contains(&format!("({by_hand} bytes)")), "{text}");

    let echoing = Plan { echo_path: Some("/echo".into()), ..plan };
    let (outbox_more, half_more) = (4 * (16 << 20) - 1_048_576, (16 << 20) - 65_536);
    assert_eq!(MemoryBudget::of(&echoing).total() - by_hand, 2000 * (outbox_more + half_more));

    let limits = Limits { echo_message_bytes_max: 128, ..echoing.limits };
    let hardly = Plan { limits, ..echoing };
    assert_eq!(MemoryBudget::of(&hardly).total(), by_hand, "the larger limit counts, not both");
}

#[test]
fn limits_beyond_the_memory_here_are_mentioned() {
    let small = Machine { memory_bytes: Some(1 << 30), ..machine(&[0], 20_000) };
    let mentions = |machine: &Machine| {
        let notices = planned(&[], machine).notices;
        notices.iter().any(|notice| notice.text.contains("1 GiB of memory here"))
    };
    assert!(mentions(&small));
    assert!(!mentions(&machine(&[0], 20_000)));
}

#[test]
fn sizes_are_written_for_people() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        (u64::MAX, "16777216 TiB"),
    ] {
        assert_eq!(ByteSize(bytes).to_string(), text);
    }
}

#[test]
fn a_node_without_a_name_gets_one_that_differs_from_start_to_start() {
    let names = [7, 8].map(|node| {
        let machine = Machine { node: NodeId(node), ..machine(&[0], MANY) };
        planned(&[], &machine).plan.node_name
    });
    assert_ne!(names[0], names[1]);
    assert!(names.iter().all(|name| crate::ids::is_name(name)));
    assert_eq!(planned(&[("node.name", "t")], &machine(&[0], MANY)).plan.node_name, "t");
}

#[test]
fn a_plan_that_is_logged_shows_no_secret() {
    let secret = "hunter2-hunter2-hunter2";
    let url = "redis://:hunter2-hunter2-hunter2@h";
    let flags = [("auth.hmac_secret", secret), ("ops.api_key", secret), ("backplane", url)];
    let planned = planned(&flags, &machine(&[0], MANY));
    assert!(!format!("{planned:?}").contains(secret));
    assert!(planned.notices.iter().all(|notice| !notice.text.contains(secret)));
    assert!(!print(&planned).contains(secret));
}

#[test]
fn a_printed_plan_has_every_limit_the_sum_and_what_an_operator_should_act_on() {
    let flags = [("limits.head_bytes_max", "4096"), ("namespaces", "chat: history_size=7")];
    let planned = planned(&flags, &machine(&[0, 1], MANY));
    let text = print(&planned);
    let value_of = |name: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        line.and_then(|line| line.trim().strip_prefix(name)).map(str::trim).unwrap_or("(no line)")
    };
    for limit in crate::policy::limits::LIMIT_SETTINGS {
        assert_eq!(value_of(limit.key), (limit.get)(&planned.plan.limits).to_string());
    }
    assert_eq!(value_of("shards"), "2, on cores 0, 1");
    assert_eq!(value_of("API "), "http://127.0.0.1:8090/v1/stats");
    assert!(value_of("namespaces").contains("history_size=7"), "{text}");
    let total = ByteSize(MemoryBudget::of(&planned.plan).total());
    assert_eq!(value_of("together"), format!("at most {total}"));
    for part in planned.plan.memory().parts {
        assert_eq!(value_of(part.name), format!("at most {}", ByteSize(part.bytes)));
    }
    assert!(value_of("warning").contains("auth.hmac_secret is not set"), "{text}");
    assert_eq!(print(&planned), text, "one order");
}

#[test]
fn steering_by_core_wants_shards_that_are_pinned() {
    let by_core = config(&[("steering", "cpu"), ("shards", "2")]);
    let error = resolve(&by_core, &machine(&[], MANY)).unwrap_err().to_string();
    assert!(error.contains("steering = cpu") && error.contains("cores = "), "{error}");
    assert!(resolve(&config(&[("shards", "2")]), &machine(&[], MANY)).is_ok());
    let says = |cores: &[usize]| {
        let notices = resolve(&by_core, &machine(cores, MANY)).unwrap().notices;
        notices.iter().any(|notice| notice.text.contains("no shard is pinned to core"))
    };
    assert!(!says(&[4, 5]));
    assert!(says(&[4, 5, 6]), "what core 6 receives has no shard of its own");
}
