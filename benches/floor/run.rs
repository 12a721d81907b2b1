//! `cargo run --release --example floor -- --help`: see floor.rs.

#[path = "floor.rs"]
mod floor;

fn main() -> std::process::ExitCode {
    floor::main(std::env::args_os())
}
