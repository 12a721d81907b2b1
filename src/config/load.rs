//! From flags, environment and file to a `Config`, or to all errors at once.
//!
//! Invariant: this module opens nothing. The file's text and the environment are arguments.

use crate::config::error::nearest;
use crate::config::error::{ConfigError, ConfigErrors, ValueSource};
use crate::config::settings::{Config, SETTINGS, Setting, setting};
use crate::config::value::ValueKind;
use crate::policy::namespaces::Namespaces;
use toml::de::{DeTable, DeValue};

/// The configuration file, read by the caller.
#[derive(Clone, Debug)]
pub struct FileText {
    /// As the operator named it.
    pub path: String,
    /// Its whole text, TOML.
    pub text: String,
}

/// All that an operator configures, by where it stands.
#[derive(Clone, Debug, Default)]
pub struct ConfigSources {
    /// Keys (not flag names) and values.
    pub flags: Vec<(&'static str, String)>,
    /// The environment, or that part of it that starts with `CAMPANILE_`.
    pub env: Vec<(String, String)>,
    /// The file, if one was named.
    pub file: Option<FileText>,
}

/// Where a configuration was read from, so that it can be read again.
#[derive(Clone, Debug, Default)]
pub struct ConfigOrigin {
    /// As in [`ConfigSources`].
    pub flags: Vec<(&'static str, String)>,
    /// As in [`ConfigSources`].
    pub env: Vec<(String, String)>,
    /// The path of the file, if one was named.
    pub path: Option<String>,
}

impl ConfigOrigin {
    /// Reads the file, and merges it with flags and environment.
    pub fn load(&self, read_file: &ReadFile<'_>) -> Result<Config, ConfigErrors> {
        let file = self.path.as_ref().map(|path| match read_file(path) {
            Ok(text) => Ok(FileText { path: path.clone(), text }),
            Err(error) => {
                let reason = format!("cannot be read: {error}");
                Err(ConfigErrors(vec![ConfigError::File { path: path.clone(), reason }]))
            }
        });
        let (flags, env) = (self.flags.clone(), self.env.clone());
        let sources = ConfigSources { flags, env, file: file.transpose()? };
        Config::load_reading(&sources, read_file)
    }
}

/// Answers the text of a file.
pub(super) type ReadFile<'a> = dyn Fn(&str) -> std::io::Result<String> + 'a;

impl Config {
    /// Merges the sources. Flags win over the environment, which wins over the file. No setting can
    /// name another file here.
    pub fn load(sources: &ConfigSources) -> Result<Config, ConfigErrors> {
        Config::load_reading(sources, &|_| Err(std::io::ErrorKind::NotFound.into()))
    }

    /// The same; secrets may stand in files, whose text `read_file` answers.
    pub fn load_reading(
        sources: &ConfigSources,
        read_file: &ReadFile<'_>,
    ) -> Result<Config, ConfigErrors> {
        let mut loading = Loading { config: Config::default(), errors: Vec::new() };
        if let Some(file) = &sources.file {
            loading.file(file);
        }
        for (name, value) in &sources.env {
            loading.env(name, value);
        }
        for (key, value) in &sources.flags {
            let setting = setting(key).expect("flags are made from settings");
            loading.set(setting, value, ValueSource::Flag(format!("--{}", setting.flag())));
        }
        loading.secret_files(read_file);
        loading.keys_file(read_file);
        if loading.errors.is_empty() {
            loading.errors = loading.config.contradictions();
        }
        match loading.errors.is_empty() {
            true => Ok(loading.config),
            false => Err(ConfigErrors(loading.errors)),
        }
    }
}

const HMAC_SECRET: &str = "auth.hmac_secret";

struct Loading {
    config: Config,
    errors: Vec<ConfigError>,
}

impl Loading {
    fn set(&mut self, setting: &Setting, text: &str, source: ValueSource) {
        let text =
            if matches!(setting.kind, ValueKind::Secret) { self.trim(setting, text) } else { text };
        if setting.key == HMAC_SECRET {
            self.config.is_secret_blank = text.is_empty();
        }
        if let Err(reason) = setting.set(&mut self.config, text) {
            let shown = setting.shown(text);
            self.errors.push(ConfigError::BadValue { key: setting.key, shown, source, reason });
        }
    }

    /// Editors and `echo` put a line break behind a secret that nobody meant.
    fn trim<'a>(&mut self, setting: &Setting, text: &'a str) -> &'a str {
        let trimmed = text.trim_end_matches(['\r', '\n']);
        if trimmed != text {
            self.config.secrets_trimmed.push(setting.key);
        }
        trimmed
    }

    /// The keys of an identity provider. What is in the file is judged where its meaning is known.
    fn keys_file(&mut self, read_file: &ReadFile<'_>) {
        let Some(path) = self.config.auth_keys_file.clone() else { return };
        match read_file(&path) {
            Ok(text) => self.config.auth_keys_text = Some(text),
            Err(error) => self.errors.push(ConfigError::Contradiction {
                message: format!("auth.keys_file = {path} cannot be read: {error}"),
            }),
        }
    }

    /// Secrets that stand in files of their own.
    fn secret_files(&mut self, read_file: &ReadFile<'_>) {
        for secret in SETTINGS.iter().filter(|setting| matches!(setting.kind, ValueKind::Secret)) {
            let file_key = format!("{}_file", secret.key);
            let file = setting(&file_key).expect("each secret may stand in a file");
            let path = file.text(&self.config);
            if path.is_empty() {
                continue;
            }
            if !secret.text(&self.config).is_empty() {
                let message = format!("{} and {file_key} are both set: leave one out", secret.key);
                self.errors.push(ConfigError::Contradiction { message });
                continue;
            }
            match read_file(&path) {
                Ok(text) if !text.trim().is_empty() => {
                    let text = text.trim_end_matches(['\r', '\n']);
                    let line = 1;
                    self.set(secret, text, ValueSource::File { path, line });
                }
                Ok(_) => {
                    let reason = format!("{file_key}: the file is empty");
                    self.errors.push(ConfigError::File { path, reason });
                }
                Err(error) => {
                    let reason = format!("{file_key}: cannot be read: {error}");
                    self.errors.push(ConfigError::File { path, reason });
                }
            }
        }
    }

    fn env(&mut self, name: &str, value: &str) {
        if !name.starts_with("CAMPANILE_") || name == "CAMPANILE_CONFIG" || is_service_link(name) {
            return;
        }
        let source = ValueSource::Env(name.to_owned());
        match SETTINGS.iter().find(|setting| setting.env() == name) {
            Some(setting) => self.set(setting, value, source),
            None => {
                let nearest = nearest(name, Setting::env);
                let key = name.to_owned();
                self.errors.push(ConfigError::UnknownKey { key, source, nearest });
            }
        }
    }

    fn file(&mut self, file: &FileText) {
        let parsed = match DeTable::parse(&file.text) {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(&file.text, span.start));
                let reason = format!("line {line}: not TOML: {}", error.message());
                self.errors.push(ConfigError::File { path: file.path.clone(), reason });
                return;
            }
        };
        self.table(file, "", parsed.get_ref());
    }

    fn table(&mut self, file: &FileText, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let line = line_of(&file.text, name.span().start);
            let source = ValueSource::File { path: file.path.clone(), line };
            let key = format!("{section}{}", name.get_ref());
            if let (
                Some(setting @ Setting { kind: ValueKind::Namespaces, .. }),
                DeValue::Table(spaces),
            ) = (setting(&key), value.get_ref())
            {
                self.namespaces(file, setting, spaces);
                continue;
            }
            match (setting(&key), value.get_ref()) {
                (Some(setting), value) => match text_of(value) {
                    Some(text) => self.set(setting, &text, source),
                    None => self.errors.push(ConfigError::BadValue {
                        key: setting.key,
                        shown: kind_of(value).to_owned(),
                        source,
                        reason: String::new(),
                    }),
                },
                (None, DeValue::Table(table)) if is_section(&key) => {
                    self.table(file, &format!("{key}."), table);
                }
                (None, _) => {
                    let nearest = nearest(&key, |setting| setting.key.to_owned());
                    self.errors.push(ConfigError::UnknownKey { key, source, nearest });
                }
            }
        }
    }
}

impl Loading {
    /// `[namespaces.chat]` and its like: each line is judged where it stands.
    fn namespaces(&mut self, file: &FileText, setting: &Setting, spaces: &DeTable<'_>) {
        let mut all = Namespaces::default();
        for (space, settings) in spaces {
            let space_line = line_of(&file.text, space.span().start);
            let DeValue::Table(settings) = settings.get_ref() else {
                let shown = format!("{} = …", space.get_ref());
                self.bad_space(
                    file,
                    setting,
                    space_line,
                    shown,
                    "Its value is not a table. ".into(),
                );
                continue;
            };
            for (key, value) in settings {
                let text =
                    text_of(value.get_ref()).unwrap_or_else(|| kind_of(value.get_ref()).into());
                if let Err(reason) = all.set(space.get_ref(), key.get_ref(), &text) {
                    let line = line_of(&file.text, key.span().start);
                    let shown = format!("{}: {}={text}", space.get_ref(), key.get_ref());
                    self.bad_space(file, setting, line, shown, reason);
                }
            }
        }
        self.config.namespaces = all;
    }

    fn bad_space(
        &mut self,
        file: &FileText,
        setting: &Setting,
        line: usize,
        shown: String,
        reason: String,
    ) {
        let source = ValueSource::File { path: file.path.clone(), line };
        self.errors.push(ConfigError::BadValue { key: setting.key, shown, source, reason });
    }
}

/// In Kubernetes a service called `campanile` (or `campanile-…`) puts such variables into every pod
/// of its namespace. They are not ours.
fn is_service_link(name: &str) -> bool {
    let port_of = |(_, rest): (&str, &str)| rest.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(port_of)
}

fn is_section(key: &str) -> bool {
    SETTINGS
        .iter()
        .any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// The value as a flag would say it; `None` for what no setting takes.
fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        // One that is too large is refused as it was written.
        DeValue::Integer(number) => Some(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |n| n.to_string()),
        ),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        DeValue::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(|item| text_of(item.get_ref())).collect();
            Some(items?.join(","))
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::Float(_) => "a fraction",
        DeValue::Datetime(_) => "a date",
        DeValue::Table(_) => "a table",
        _ => "a list",
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
