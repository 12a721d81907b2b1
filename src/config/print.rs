//! The table of settings as a sample file and as a table for docs/configuration.md.

use crate::config::reload::ReloadClass;
use crate::config::settings::{SETTINGS, Setting};
use crate::config::value::ValueKind;
use crate::policy::namespaces::{NAMESPACE_SETTINGS, Policy};
use std::fmt::Write;

/// Every setting with its meaning, as a TOML file that sets each to its default.
pub fn sample() -> String {
    let mut out = String::from(
        "# Every setting of Campanile with its default. Each is also a flag (limits.head_bytes_max is\n\
         # --limits-head-bytes-max) and an environment variable (CAMPANILE_LIMITS_HEAD_BYTES_MAX).\n\
         # A flag wins over the environment, which wins over this file.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        let (here, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if here != section {
            section = here;
            write!(out, "\n[{section}]\n").expect("a String takes everything");
        }
        if matches!(setting.kind, ValueKind::Namespaces) {
            continue; // its tables stand after all other keys
        }
        let (doc, value) = (wrap(setting.doc), toml_value(setting, &setting.default_text()));
        let wanted = wrap(&format!("Takes {}.", setting.kind.wanted()));
        // A secret that is set to nothing is taken for one that was forgotten.
        let comment = if matches!(setting.kind, ValueKind::Secret) { "# " } else { "" };
        write!(out, "\n{doc}{wanted}{comment}{name} = {value}\n")
            .expect("a String takes everything");
    }
    for setting in SETTINGS.iter().filter(|setting| matches!(setting.kind, ValueKind::Namespaces)) {
        namespaces(setting, &mut out);
    }
    out
}

/// Tables that are not there by default, as a comment: one of them, with what is the case anyway.
fn namespaces(setting: &Setting, out: &mut String) {
    write!(out, "\n{}#\n# [namespaces.chat]\n", wrap(setting.doc))
        .expect("a String takes everything");
    for setting in NAMESPACE_SETTINGS {
        let value = (setting.get)(&Policy::DEFAULT);
        let is_bare = value.parse::<u64>().is_ok() || value.parse::<bool>().is_ok();
        let value = if is_bare { value } else { format!("{value:?}") };
        let doc = wrap_to(98, &format!("{} Takes {}.", setting.doc, setting.range.wanted()));
        let doc: String = doc.lines().map(|line| format!("# {line}\n")).collect();
        writeln!(out, "{doc}# {} = {value}", setting.key).expect("a String takes everything");
    }
}

/// Every setting of a namespace as a Markdown table: key, default, meaning.
fn namespaces_markdown() -> String {
    let mut out =
        String::from("\n`[namespaces.<name>]`:\n\n| key | default | meaning |\n|---|---|---|\n");
    for setting in NAMESPACE_SETTINGS {
        let (key, value) = (setting.key, (setting.get)(&Policy::DEFAULT));
        let (doc, wanted) = (setting.doc, setting.range.wanted());
        writeln!(out, "| `{key}` | `{value}` | {doc} Takes {wanted}. |")
            .expect("a String takes everything");
    }
    out
}

/// Every setting as a Markdown table: key, default, meaning; and the same for a namespace.
pub fn markdown() -> String {
    let mut out = String::from("| key | default | meaning |\n|---|---|---|\n");
    for setting in SETTINGS {
        let value = toml_value(setting, &setting.default_text());
        let (key, doc, wanted) = (setting.key, setting.doc, setting.kind.wanted());
        writeln!(out, "| `{key}` | `{value}` | {doc} Takes {wanted}. |")
            .expect("a String takes everything");
    }
    out + &namespaces_markdown()
}

/// When a change of each setting holds, as a Markdown table: the rows that need no restart first.
pub fn reload_markdown() -> String {
    let mut out = String::from("| key | a change holds |\n|---|---|\n");
    let is_restart = |setting: &&Setting| setting.reload_class() == ReloadClass::Restart;
    let lively = SETTINGS.iter().filter(|setting| !is_restart(setting));
    for setting in lively.chain(SETTINGS.iter().filter(is_restart)) {
        let (key, class) = (setting.key, setting.reload_class().text());
        writeln!(out, "| `{key}` | {class} |").expect("a String takes everything");
    }
    out
}

/// A value as the file writes it.
fn toml_value(setting: &Setting, text: &str) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    if setting.kind.is_bare() {
        text.to_owned()
    } else if setting.kind.is_list() && text != "auto" {
        let items = text.split(',').filter(|item| !item.is_empty()).map(quoted);
        format!("[{}]", items.collect::<Vec<_>>().join(", "))
    } else {
        quoted(text)
    }
}

/// A comment of lines at most 100 wide.
fn wrap(text: &str) -> String {
    wrap_to(100, text)
}

fn wrap_to(width: usize, text: &str) -> String {
    let mut out = String::new();
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > width {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out + &line + "\n"
}
