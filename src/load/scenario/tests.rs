use super::args::{LoadArgs, Scenario};
use super::plan::{FleetLayout, workers};
use crate::load::client::rooms::RoomAssignment;
use crate::load::client::template::Template;
use crate::load::error::LoadError;
use crate::load::run::plan::RunPlan;
use crate::load::run::publish::PublishPace;
use crate::load::sys;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: LoadArgs,
}

fn parse(line: &str) -> Result<LoadArgs, clap::Error> {
    Cli::try_parse_from(line.split(' ')).map(|cli| cli.load)
}

fn idle(line: &str) -> Result<RunPlan, LoadError> {
    let Scenario::Idle(args) = parse(line).expect("clap accepts it").scenario else {
        panic!("{line} is not idle")
    };
    let rooms = RoomAssignment::of_size(args.conns, args.room_size);
    let layout = FleetLayout::new(&args.common, rooms, &args.broadcast_message, 120);
    args.common.run_plan(layout)
}

fn refusal(line: &str) -> String {
    idle(line).expect_err("a wrong argument").to_string()
}

#[test]
fn the_default_is_a_campanile_on_this_host() {
    let plan = idle("load idle").expect("defaults are valid");
    assert_eq!(plan.client.path, Template::parse("/ws?{room_ids}"));
    assert_eq!(plan.client.ready.as_deref(), Some(r#""type":"ok""#));
    assert_eq!(plan.client.targets[0].addr.port(), 8080);
}

#[test]
fn another_server_gets_its_own_path_and_messages() {
    let plan =
        idle("load idle --url ws://127.0.0.1:9/app/x --init [{room}] --ready ").expect("valid");
    assert_eq!(plan.client.path, Template::parse("/app/x"));
    assert_eq!(plan.client.init.len(), 1);
    assert_eq!(plan.client.ready, None);
    let plan = idle("load idle --url ws://127.0.0.1:9/x --answer 0=40").expect("valid");
    assert_eq!(plan.client.path, Template::parse("/x"));
    let plan = idle("load idle --url ws://127.0.0.1:9/x?a=b").expect("valid");
    assert_eq!(plan.client.path, Template::parse("/x?a=b&{room_ids}"));
}

#[test]
fn a_wrong_argument_is_refused_with_what_to_write_instead() {
    assert!(refusal("load idle --url wss://127.0.0.1/").contains("TLS"));
    assert!(refusal("load idle --url 127.0.0.1:80").contains("ws://"));
    assert!(refusal("load idle --path ws").contains("begin with /"));
    assert!(refusal("load idle --cores 3-1").contains("0,2-3"));
    assert!(refusal("load idle --header X").contains("Name: value"));
    assert!(refusal("load idle --broadcast-message hello").contains("{payload}"));
    assert!(refusal("load idle --connect-rate 0").contains("above zero"));
    assert!(refusal("load idle --answer ping").contains("BEGINNING=MESSAGE"));
    assert!(refusal("load idle --answer a={signature}").contains("--sign"));
    assert!(refusal("load idle --sign key").contains("KEY=TEXT"));
    assert!(refusal("load idle --init {field:id}").contains("--answer only"));
    assert!(parse("load fanout --rate 5 --window 2").is_err());
    assert!(parse("load idle --conns 0").is_err());
    assert!(parse("load").is_err());
}

#[test]
fn a_fanout_with_contradicting_numbers_is_refused() {
    let pace = |line: &str| match parse(line).expect("clap accepts it").scenario {
        Scenario::Fanout(args) => args.pace().map_err(|error| error.to_string()),
        _ => panic!("{line} is not a fanout"),
    };
    assert!(matches!(pace("load fanout"), Ok(PublishPace::Window(1))));
    assert!(matches!(pace("load fanout --rate 0.5"), Ok(PublishPace::Rate(_))));
    assert!(pace("load fanout --members 2 --publishers 3").is_err());
    assert!(pace("load fanout --duration-s 700").is_err());
    assert!(pace("load fanout --no-echo --members 1").is_err());
    assert!(pace("load fanout --rate=-1").is_err());
    assert!(pace("load fanout --rate=nan").is_err());
    assert!(pace("load fanout --rate=inf").expect_err("no end").contains("10000000"));
}

#[test]
fn old_names_of_commands_and_flags_work_and_are_hidden() {
    assert!(matches!(parse("load talk").expect("an alias").scenario, Scenario::Ingest(_)));
    let Scenario::Fanout(args) = parse("load fanout --silent 3").expect("an alias").scenario else {
        panic!("that is a fanout")
    };
    assert_eq!(args.non_reading, 3);
    let mut command = <Cli as clap::CommandFactory>::command();
    assert!(!command.render_long_help().to_string().contains("talk"));
    let fanout = command.find_subcommand_mut("fanout").expect("a scenario");
    assert!(!fanout.render_long_help().to_string().contains("--silent"));
}

#[test]
fn a_time_or_a_text_that_would_end_the_generator_is_refused() {
    let check = |line: &str| match parse(line).expect("clap accepts it").scenario {
        Scenario::Ingest(args) => args.check().map_err(|error| error.to_string()),
        Scenario::Storm(args) => args.check().map_err(|error| error.to_string()),
        _ => panic!("{line} has no check"),
    };
    assert_eq!(check("load ingest"), Ok(()));
    assert_eq!(check("load storm --before-s 0"), Ok(()));
    assert!(check("load ingest --answered-by ").expect_err("empty").contains("--answered-by"));
    assert!(check("load storm --before-s 1e300").expect_err("no time").contains("--timeout-s"));
    assert!(check("load storm --rate inf").expect_err("no rate").contains("--rate"));
    for flag in ["timeout-s", "handshake-timeout-s", "hold-s", "broadcast-timeout-s"] {
        assert!(parse(&format!("load idle --{flag} 18446744073709551615")).is_err(), "{flag}");
    }
}

#[test]
fn more_connections_than_descriptors_need_more_threads() {
    let files = sys::raise_open_file_limit().expect("the limit is readable");
    let capacity = (files / 10 * 9) as u32 - 1;
    assert_eq!(workers(capacity, 1, 1).expect("fits"), (1, false));
    assert_eq!(workers(capacity + 1, 1, 1).expect("fits"), (2, true));
    assert_eq!(workers(3, 64, 1).expect("fits"), (3, false));
}
