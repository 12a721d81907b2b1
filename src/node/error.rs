//! Why a start failed, and how that is reported.

use crate::config::ConfigErrors;
use crate::terminal;
use std::io;
use std::process::ExitCode;

/// Why a start came to nothing.
#[derive(Debug)]
pub enum StartError {
    /// The configuration does not fit this machine. Exit code 2.
    Config(ConfigErrors),
    /// The machine does not give what is needed. Exit code 1.
    Machine(String),
}

impl StartError {
    /// The machine does not give what is needed.
    pub fn machine(error: io::Error) -> StartError {
        StartError::Machine(error.to_string())
    }

    /// Prints the reason to standard error; answers the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            StartError::Config(errors) => {
                terminal::print_error(&errors.to_string());
                ExitCode::from(2)
            }
            StartError::Machine(message) => {
                terminal::print_error(&format!("campanile: {message}.\n"));
                ExitCode::FAILURE
            }
        }
    }
}

impl From<ConfigErrors> for StartError {
    fn from(errors: ConfigErrors) -> StartError {
        StartError::Config(errors)
    }
}
