//! Placeholder: the load generator's room brings its own file.

/// Placeholder.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {}

/// Placeholder.
pub fn run(_args: LoadArgs) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
