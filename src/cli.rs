//! The command line: from arguments, environment and file to an [`Invocation`].
//!
//! The flags of `serve` are made from the table in `config.rs`, so this file names no setting. What
//! cannot be understood ends the program with exit code 2 and a message on standard error.
//!
//! Invariant: nothing is started here; environment, files and time are read only through
//! [`Environment`], which tests fake.

use crate::auth::{RoomTokenRequest, TokenRequest, mint, mint_for_room};
use crate::config::{Config, ConfigErrors, ConfigOrigin, SETTINGS, Setting, ValueKind};
use crate::doctor::DoctorRequest;
use crate::load::LoadArgs;
use crate::policy::grants::RoomActions;
use crate::policy::rights::Rights;
use crate::policy::setting::SettingRange;
use crate::terminal;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::LazyLock;

/// What to do.
pub enum Invocation {
    /// Serve clients until SIGTERM or SIGINT.
    Serve(Box<Config>, Box<ConfigOrigin>),
    /// Print what a start would do here.
    Plan(Box<Config>),
    /// Put load on a server.
    Load(Box<LoadArgs>),
    /// Say what this host lacks.
    Doctor(Box<DoctorRequest>),
    /// Print this and end well.
    Print(String),
}

/// Why a command line was not understood.
#[derive(Debug)]
pub enum CliError {
    /// Not a command line of ours; also `--help` and `--version`, which are not errors.
    Usage(clap::Error),
    /// Wrong configuration.
    Config(ConfigErrors),
    /// Wrong for this one command.
    Other(String),
}

/// What the command line may read.
pub struct Environment<'a> {
    /// The environment.
    pub env: Vec<(String, String)>,
    /// Reads a whole file.
    pub read_file: &'a dyn Fn(&str) -> io::Result<String>,
    /// Seconds since 1970.
    pub now_unix_s: u64,
}

/// Reads a command line: what to do.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment<'_>,
) -> Result<Invocation, CliError> {
    let matches = command().try_get_matches_from(args).map_err(CliError::Usage)?;
    let (name, matches) = matches.subcommand().expect("clap requires a subcommand");
    match name {
        "serve" => {
            let origin = origin(matches, environment);
            let config = origin.load(environment.read_file).map_err(CliError::Config)?;
            Ok(Invocation::Serve(Box::new(config), Box::new(origin)))
        }
        "load" => {
            let args = LoadArgs::from_arg_matches(matches).map_err(CliError::Usage)?;
            Ok(Invocation::Load(Box::new(args)))
        }
        "doctor" => {
            let connections = *matches.get_one("connections").expect("it has a default");
            let config = config(matches, environment)?;
            Ok(Invocation::Doctor(Box::new(DoctorRequest { connections, config })))
        }
        "token" => token(matches, environment).map(Invocation::Print),
        "config" if matches.get_flag("plan") => {
            Ok(Invocation::Plan(Box::new(config(matches, environment)?)))
        }
        "config" => print_config(matches, environment).map(Invocation::Print),
        _ => unreachable!("clap accepts no other subcommand"),
    }
}

/// The whole command line, for `--help` and for documents.
pub fn command() -> Command {
    let serve = Command::new("serve")
        .about("Serve clients until SIGTERM or SIGINT")
        .after_help(PRECEDENCE)
        .args(setting_args(false));
    let load = LoadArgs::augment_args(
        Command::new("load").about("Put load on a WebSocket server, and measure what it does"),
    );
    Command::new("campanile")
        .about("A WebSocket server whose instances act as one")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([serve, load, doctor_command(), token_command(), config_command()])
}

const PRECEDENCE: &str = "Every flag is also a key of the TOML file and a variable of the \
    environment: --limits-head-bytes-max is limits.head_bytes_max and \
    CAMPANILE_LIMITS_HEAD_BYTES_MAX. A flag wins over the environment, which wins over the file. \
    `campanile config` prints every key.";

fn doctor_command() -> Command {
    Command::new("doctor")
        .about(
            "Check whether this host is set up for so many connections, and print what to change",
        )
        .after_help("Takes the flags of `serve` too. Exit code 1: something is missing.")
        .arg(
            Arg::new("connections")
                .long("connections")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..=100_000_000))
                .default_value("10000")
                .help("Connections of this node"),
        )
        .args(setting_args(true))
}

fn token_command() -> Command {
    let value =
        |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    Command::new("token")
        .about("Print a token for trying things out")
        .arg(value("user", "USER").required(true).help("Who the token is for"))
        .arg(value("secret", "SECRET").help("Signs it. Default: auth.hmac_secret"))
        .arg(
            value("ttl", "SECONDS")
                .value_parser(value_parser!(u64).range(1..=3_153_600_000))
                .default_value("3600")
                .help("How long it is good for"),
        )
        .arg(value("rights", "LIST").help(
            "What it allows, out of publish,publish_unjoined,send,broadcast. Default: what the \
             server gives to users",
        ))
        .arg(value("rooms", "LIST").help(
            "The only rooms that it opens, by patterns such as chat:*,dm:{user}:*. Default: all that \
             are open to users",
        ))
        .arg(
            value("room", "ROOM")
                .conflicts_with_all(["rights", "rooms", "send-to", "info"])
                .help("A token for this one room, to be sent with a join"),
        )
        .arg(value("actions", "LIST").requires("room").help(
            "What it allows in that room, out of join,publish,history,presence. Default: all",
        ))
        .arg(value("send-to", "LIST").help("Users to whom it may send, by patterns such as team-*"))
        .arg(value("info", "JSON").help(
            "What others are shown of the user, where presence or message_info is on. Default: nothing",
        ))
        .args(setting_args(true))
}

fn config_command() -> Command {
    Command::new("config")
        .about("Print every setting with its default and meaning, as TOML")
        .arg(
            Arg::new("markdown")
                .long("markdown")
                .action(ArgAction::SetTrue)
                .conflicts_with("check")
                .help("Print a Markdown table instead"),
        )
        .arg(
            Arg::new("check")
                .long("check")
                .value_name("FILE")
                .help("Say whether this file is good, and what is wrong with it"),
        )
        .arg(
            Arg::new("plan")
                .long("plan")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["markdown", "check"])
                .help(
                    "Print what a start would do on this machine: ports, shards, cores, limits, and \
                     the memory that they allow",
                ),
        )
        .after_help("--plan takes the flags of `serve` too.")
        .args(setting_args(true).into_iter().map(|arg| arg.requires("plan")))
}

/// `--config` and one flag a setting.
fn setting_args(hide: bool) -> Vec<Arg> {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .hide(hide)
        .help("The TOML file. Also CAMPANILE_CONFIG");
    let settings = SETTINGS.iter().zip(FLAGS.iter());
    let settings = settings.map(|(setting, flag)| setting_arg(setting, flag).hide(hide));
    std::iter::once(file).chain(settings).collect()
}

/// The flags' names, in the order of [`SETTINGS`]; clap requires `'static`.
static FLAGS: LazyLock<Vec<String>> =
    LazyLock::new(|| SETTINGS.iter().map(Setting::flag).collect());

fn setting_arg(setting: &'static Setting, flag: &'static str) -> Arg {
    let default = setting.default_text();
    let default = if default.is_empty() { "none".to_owned() } else { default };
    let wanted = setting.kind.wanted();
    let arg = Arg::new(setting.key)
        .long(flag)
        .value_name("VALUE")
        .allow_hyphen_values(true)
        .action(ArgAction::Set)
        .help(format!("{} Takes {wanted}. [default: {default}]", setting.doc));
    match setting.kind {
        // `--private-fd-tables` alone means `true`.
        ValueKind::Plain(SettingRange::Bool) => arg.num_args(0..=1).default_missing_value("true"),
        _ => arg,
    }
}

fn config(matches: &ArgMatches, environment: &Environment<'_>) -> Result<Config, CliError> {
    origin(matches, environment).load(environment.read_file).map_err(CliError::Config)
}

fn origin(matches: &ArgMatches, environment: &Environment<'_>) -> ConfigOrigin {
    let given = |setting: &'static Setting| {
        let value = matches.get_one::<String>(setting.key)?;
        Some((setting.key, value.clone()))
    };
    let from_env = || environment.env.iter().find(|(name, _)| name == "CAMPANILE_CONFIG");
    let path = matches.get_one::<String>("config").or_else(|| from_env().map(|(_, path)| path));
    ConfigOrigin {
        flags: SETTINGS.iter().filter_map(given).collect(),
        env: environment.env.clone(),
        path: path.cloned(),
    }
}

fn token(matches: &ArgMatches, environment: &Environment<'_>) -> Result<String, CliError> {
    let text = |name: &str| matches.get_one::<String>(name);
    // A broken configuration is no hindrance when it is not asked for anything.
    let secret = match text("secret") {
        Some(secret) => Some(secret.clone()),
        None => config(matches, environment)?.auth_hmac_secret,
    };
    let secret = secret.filter(|secret| !secret.is_empty()).ok_or_else(|| {
        CliError::Other("there is no secret: give --secret, or set auth.hmac_secret".to_owned())
    })?;
    let user = text("user").expect("clap requires it").clone();
    let ttl_s = matches.get_one::<u64>("ttl").expect("it has a default");
    let expires_unix_s = environment.now_unix_s + ttl_s;
    let refused = |why: String| CliError::Other(format!("--user {user}: {why}"));
    if let Some(room) = text("room") {
        let actions = text("actions").map(|list| actions(list)).transpose()?;
        let (user, room) = (user.clone(), room.clone());
        let actions = actions.unwrap_or(RoomActions::ALL);
        let request = RoomTokenRequest { user, room, actions, expires_unix_s };
        return mint_for_room(&request, &secret).map_err(refused);
    }
    let request = TokenRequest {
        user: user.clone(),
        rights: text("rights").map(|list| rights(list)).transpose()?,
        rooms: text("rooms").map(|list| items(list)).unwrap_or_default(),
        send: text("send-to").map(|list| items(list)).unwrap_or_default(),
        info: text("info").cloned(),
        issued_unix_s: environment.now_unix_s,
        expires_unix_s,
    };
    mint(&request, &secret).map_err(refused)
}

fn actions(list: &str) -> Result<RoomActions, CliError> {
    items(list).iter().try_fold(RoomActions::NONE, |actions, name| {
        actions.with(name).ok_or_else(|| {
            let known = RoomActions::NAMES.join(", ");
            CliError::Other(format!("--actions {list}: {name:?} is no action. Write {known}"))
        })
    })
}

fn items(list: &str) -> Vec<String> {
    let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(str::to_owned).collect()
}

fn rights(list: &str) -> Result<Rights, CliError> {
    let mut names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.try_fold(Rights::NONE, |rights, name| {
        rights.with(name).ok_or_else(|| {
            let known = Rights::NAMES.join(", ");
            CliError::Other(format!("--rights {list}: {name:?} is not a right. Write {known}"))
        })
    })
}

fn print_config(matches: &ArgMatches, environment: &Environment<'_>) -> Result<String, CliError> {
    if matches.get_flag("markdown") {
        return Ok(crate::config::markdown());
    }
    let Some(path) = matches.get_one::<String>("check") else {
        return Ok(crate::config::sample());
    };
    let origin = ConfigOrigin { path: Some(path.clone()), ..ConfigOrigin::default() };
    origin.load(environment.read_file).map_err(CliError::Config)?;
    Ok(format!("{path}: good"))
}

impl CliError {
    /// Prints the reason to standard error; answers the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            CliError::Usage(error) => usage(error),
            CliError::Config(errors) => refused(&errors.to_string()),
            CliError::Other(message) => refused(&format!("campanile: {message}.\n")),
        }
    }
}

/// Help that was asked for goes to standard output, what was typed wrong to standard error.
fn usage(text: &clap::Error) -> ExitCode {
    let is_help = !text.use_stderr();
    let shows_colours =
        if is_help { io::stdout().is_terminal() } else { io::stderr().is_terminal() };
    match is_help {
        _ if shows_colours && text.print().is_ok() => ExitCode::from(text.exit_code() as u8),
        true => terminal::print(&text.to_string()),
        false => refused(&text.to_string()),
    }
}

fn refused(why: &str) -> ExitCode {
    terminal::print_error(why);
    ExitCode::from(2)
}
