//! The parameters of a backplane URL: what stands behind its `?`.

use crate::config::backplane::percent;

/// Their values, decoded, each at most once and none empty.
#[derive(Debug, Default)]
pub(super) struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    /// Reads `name=value&…`, of which only these names are `known`. `None`: there is no `?`.
    pub(super) fn read(query: Option<&str>, known: &[&'static str]) -> Result<Parameters, String> {
        let mut parameters = Parameters::default();
        let Some(query) = query else { return Ok(parameters) };
        if query.is_empty() {
            return Err("Nothing stands behind the ?. ".to_owned());
        }
        for pair in query.split('&') {
            parameters.add(pair, known)?;
        }
        Ok(parameters)
    }

    fn add(&mut self, pair: &str, known: &[&'static str]) -> Result<(), String> {
        if pair.is_empty() {
            return Err("A parameter between two & is empty. ".to_owned());
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // As the redis crate writes it.
        let name = if name == "pass" { "password" } else { name };
        let Some(name) = known.iter().find(|known| **known == name) else {
            return Err(unknown(name, known));
        };
        if self.0.iter().any(|(other, _)| other == name) {
            return Err(format!("Parameter {name} is there twice. "));
        }
        if value.is_empty() {
            return Err(format!("Parameter {name} has no value. "));
        }
        let value = percent::decode(value)
            .map_err(|error| format!("The value of parameter {name} {}. ", error.reason()))?;
        self.0.push((name, value));
        Ok(())
    }

    /// Takes the value of one; empty: it is not there.
    pub(super) fn take(&mut self, name: &str) -> String {
        let at = self.0.iter().position(|(other, _)| *other == name);
        at.map_or_else(String::new, |at| self.0.swap_remove(at).1)
    }
}

fn unknown(name: &str, known: &[&'static str]) -> String {
    let is_shown = (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let what = if is_shown { format!("Parameter {name}") } else { "A parameter".to_owned() };
    match known {
        [] => format!("{what} is unknown: URLs of this form have none. "),
        known => format!("{what} is unknown; known are {}. ", known.join(", ")),
    }
}
