//! The program: reads the command line and runs the command.

use campanile::cli::{self, Environment, Invocation};
use campanile::node::startup;
use campanile::{doctor, load, operator_files, terminal};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let environment = Environment {
        // Not UTF-8 is not left out: a secret that is ignored would let everyone in.
        env: std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into()))
            .collect(),
        read_file: &|path| operator_files::read_text(path),
        now_unix_s: now,
    };
    let code = match cli::parse(std::env::args_os(), &environment) {
        Ok(Invocation::Serve(config, origin)) => {
            startup::serve(&config, *origin).unwrap_or_else(|failure| failure.report())
        }
        Ok(Invocation::Plan(config)) => {
            startup::print_plan(&config).unwrap_or_else(|failure| failure.report())
        }
        Ok(Invocation::Load(args)) => load::run(*args),
        Ok(Invocation::Doctor(question)) => doctor::run(&question),
        Ok(Invocation::Print(text)) => terminal::print(&text),
        Err(error) => error.report(),
    };
    terminal::flush();
    code
}
