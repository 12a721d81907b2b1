//! Answers of servers of several ages, and bytes of none.

use super::*;
use proptest::prelude::*;

fn section(name: &str) -> &'static Section {
    SECTIONS.iter().find(|section| section.name == name).expect("it is asked for")
}

fn numbers(name: &str, answer: &str) -> RedisNumbers {
    let mut numbers = RedisNumbers::default();
    read(section(name), answer.replace('\n', "\r\n").as_bytes(), &mut numbers);
    numbers
}

#[test]
fn a_master_of_6_2_without_anything_newer() {
    let n = numbers("server", "# Server\nredis_version:6.2.14\nuptime_in_seconds:86400\nhz:10\n");
    assert_eq!((n.version, n.is_cluster), (Some(60_214), None));
    let n = numbers(
        "memory",
        "# Memory\nused_memory:916360\nused_memory_human:894.88K\nused_memory_rss:12234752\n\
         maxmemory:1073741824\nmaxmemory_policy:volatile-lru\nmem_fragmentation_ratio:1.50\n",
    );
    assert_eq!((n.memory_used_bytes, n.memory_rss_bytes), (Some(916_360), Some(12_234_752)));
    assert_eq!((n.memory_max_bytes, n.memory_system_bytes), (Some(1 << 30), None));
    assert_eq!((n.evicts_all, n.evicts_volatile), (Some(0), Some(1)));
}

#[test]
fn a_number_at_the_end_of_its_range_is_read_and_a_word_is_not() {
    let n = numbers(
        "stats",
        "# Stats\nevicted_keys:18446744073709551614\nrejected_connections:x\n\
         latest_fork_usec:18446744073709551616\nevicted_keys_more:1\n",
    );
    assert_eq!((n.evicted_keys, n.rejected, n.fork_us), (Some(u64::MAX - 1), None, None));
    for (text, version) in [
        ("8.0.2", Some(80_002)),
        ("7.4.0-rc1", Some(70_400)),
        ("255.255.255", None),
        ("7.2", Some(70_200)),
        ("unstable", None),
    ] {
        assert_eq!(numbers("server", &format!("redis_version:{text}\n")).version, version);
    }
}

#[test]
fn the_replica_furthest_behind_is_the_lag() {
    let n = numbers(
        "replication",
        "# Replication\nrole:master\nconnected_slaves:3\n\
         slave0:ip=10.0.0.1,port=6379,state=online,offset=900,lag=0\n\
         slave1:ip=10.0.0.2,port=6379,state=online,offset=400,lag=3\n\
         slave2:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0\n\
         master_failover_state:no-failover\nmaster_repl_offset:1000\n",
    );
    assert_eq!((n.replicas, n.replicas_online), (Some(3), Some(2)));
    assert_eq!((n.replica_lag_bytes, n.replica_lag_s), (Some(600), Some(3)));
}

#[test]
fn a_replica_is_one_and_a_master_without_replicas_has_no_lag() {
    let n = numbers(
        "replication",
        "# Replication\nrole:slave\nmaster_host:10.0.0.1\nmaster_link_status:down\n\
         slave_repl_offset:70\nslave_read_only:1\nconnected_slaves:0\nmaster_repl_offset:70\n",
    );
    assert_eq!(n.replicas, Some(0));
    assert_eq!((n.replica_lag_bytes, n.replicas_online), (None, None));
    let n = numbers("replication", "role:master\nconnected_slaves:0\nmaster_repl_offset:70\n");
    assert_eq!((n.replica_lag_bytes, n.replicas_online), (None, Some(0)));
}

#[test]
fn an_error_that_never_happened_is_0_where_errors_are_counted() {
    let n = numbers("errorstats", "# Errorstats\nerrorstat_OOM:count=3\nerrorstat_ERR:count=9\n");
    assert_eq!((n.errors_oom, n.errors_readonly), (Some(3), Some(0)));
    // 6.0 answers nothing at all.
    assert_eq!(numbers("errorstats", "").errors_readonly, None);
    let text = "# Errorstats\nerrorstat_ERRORSTATS_DISABLED:count=1\n";
    assert_eq!(numbers("errorstats", text).errors_oom, None);
}

#[test]
fn the_time_of_the_commands_that_matter_is_known() {
    let n = numbers(
        "commandstats",
        "# Commandstats\ncmdstat_publish:calls=10,usec=33,usec_per_call=3.30,rejected_calls=0\n\
         cmdstat_config|get:calls=1,usec=1,usec_per_call=1.00\n",
    );
    assert_eq!((n.publish_us, n.evalsha_us), (Some(33), Some(0)));
}

#[test]
fn processor_time_and_persistence() {
    let n = numbers(
        "cpu",
        "# CPU\nused_cpu_sys:1.5\nused_cpu_user:2.25\nused_cpu_sys_main_thread:1.0\n\
         used_cpu_user_main_thread:2.0\n",
    );
    assert_eq!(n.cpu_main_ms, Some(3000));
    assert_eq!(numbers("cpu", "used_cpu_sys:1.5\nused_cpu_user:2.25\n").cpu_main_ms, None);
    let n = numbers(
        "persistence",
        "# Persistence\nloading:0\nrdb_last_bgsave_status:err\naof_enabled:1\n\
         aof_last_write_status:ok\nrdb_changes_since_last_save:12\n",
    );
    assert_eq!((n.is_rdb_ok, n.is_aof_on, n.is_aof_ok), (Some(0), Some(1), Some(1)));
}

#[test]
fn settings_and_our_own_connection() {
    let mut n = RedisNumbers::default();
    let limits = b"normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
    read_setting("client-output-buffer-limit", limits, &mut n);
    read_setting("min-replicas-to-write", b"1", &mut n);
    read_setting("save", b"", &mut n);
    read_setting("stream-node-max-bytes", b"", &mut n);
    assert_eq!((n.output_limit_bytes, n.replicas_to_write), (Some(33_554_432), Some(1)));
    assert_eq!((n.is_saving, n.stream_node_bytes), (Some(0), None));
    read_setting("save", b"3600 1 300 100", &mut n);
    assert_eq!(n.is_saving, Some(1));
    let client = b"id=4 addr=127.0.0.1:1 name=campanile-1-sub sub=2 obl=16 oll=3 omem=61440 \
                   tot-mem=100000 events=r cmd=subscribe\n";
    read_client(client, &mut n);
    assert_eq!(n.own_output_bytes, Some(61_456));
    read_client(b"", &mut n);
    assert_eq!(n.own_output_bytes, None, "it is gone");
}

#[test]
fn a_setting_that_was_not_answered_is_not_known() {
    let mut n = RedisNumbers::default();
    for setting in SETTINGS {
        read_setting(setting, b"\xff", &mut n);
    }
    assert_eq!(n.describe().len(), 0);
}

/// Every key of a plain section: its name, and where it goes.
fn keys() -> Vec<(&'static Section, &'static str, Place)> {
    let fields = |section: &'static Section| {
        let whole = section.fields.iter().filter(|(_, way, _)| matches!(way, As::Whole));
        whole.map(move |(key, _, place)| (section, *key, *place))
    };
    SECTIONS.iter().flat_map(fields).collect()
}

proptest! {
    #[test]
    fn any_bytes_are_read(answer: Vec<u8>, texts in prop::collection::vec(".{0,40}", 0..8)) {
        for bytes in texts.iter().map(|text| text.as_bytes()).chain([&answer[..]]) {
            let mut numbers = RedisNumbers::default();
            SECTIONS.iter().for_each(|section| read(section, bytes, &mut numbers));
            SETTINGS.iter().for_each(|setting| read_setting(setting, bytes, &mut numbers));
            read_client(bytes, &mut numbers);
        }
    }

    /// What looks like an answer, cut anywhere and with anything for its values.
    #[test]
    fn lines_with_any_values_are_read(
        lines in prop::collection::vec(
            ("(slave[0-9]{0,3}|errorstat_[A-Z]{0,9}|cmdstat_publish|role|master_repl_offset|maxmemory)",
             "([-0-9.e]{0,24}|inf|nan|state=online,offset=[0-9]{0,22},lag=[-0-9]{0,4}|count=[0-9]{0,22})"),
            0..12,
        ),
        cut in 0usize..400,
    ) {
        let text: String = lines.iter().map(|(key, value)| format!("{key}:{value}\r\n")).collect();
        let bytes = &text.as_bytes()[..cut.min(text.len())];
        let mut numbers = RedisNumbers::default();
        SECTIONS.iter().for_each(|section| read(section, bytes, &mut numbers));
        prop_assert!(numbers.describe().len() <= 2 * lines.len() + 1);
    }

    #[test]
    fn exactly_what_was_sent_is_known(
        which in any::<prop::sample::Index>(),
        sent in 0u64..u64::MAX,
        around in "[a-z_]{0,12}",
    ) {
        let keys = keys();
        let (section, key, place) = which.get(&keys);
        let text = format!("# Any\r\nx{around}{key}:1\r\n{key}:{sent}\r\n{key}{around}y:2\r\n");
        let mut numbers = RedisNumbers::default();
        read(section, text.as_bytes(), &mut numbers);
        prop_assert_eq!(*place(&mut numbers), Some(sent));
        prop_assert_eq!(numbers.describe().len(), 1);
    }
}
