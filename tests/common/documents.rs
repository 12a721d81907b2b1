//! The documents of this repository and the fenced blocks in them.
//!
//! A block says in its first line how it is checked. One that says nothing that is known here is an
//! error, so no block is left out because nobody noticed it:
//!
//! | first line | how it is checked |
//! |---|---|
//! | `sh` | run; it must succeed |
//! | `sh serve` | run, and left running for the blocks after it |
//! | `js`, `python` | run; it must end well |
//! | `js with-next`, `python with-next` | the same, beside the next program, which starts when this one has printed a line |
//! | `text output`, `json output` | what the block before it prints |
//! | `text exchange` | a conversation with a node |
//! | `toml` | a configuration; a node with it serves the blocks after it |
//! | `json` | valid JSON |
//! | any language and `no-run="reason"` | not run, for that reason, and counted |
#![allow(dead_code)] // each test binary uses its part

use std::path::Path;

/// One document.
pub struct Document {
    /// From the root of the repository.
    pub path: String,
    pub text: String,
}

/// How a block is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Shell,
    Serve,
    Program { with_next: bool },
    Output,
    Exchange,
    Config,
    Json,
    NotRun { reason: String },
}

/// One fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The number of its first line.
    pub line: usize,
    pub language: String,
    pub check: Check,
    pub text: String,
}

/// A reason of fewer letters is none.
const REASON_BYTES_MIN: usize = 10;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents at the root and below `docs/`, by path.
pub fn documents() -> Vec<Document> {
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).expect("a document is UTF-8");
        Document { path, text }
    };
    let in_docs = std::fs::read_dir(root().join("docs")).expect("there are documents");
    let mut paths: Vec<String> = in_docs
        .map(|entry| entry.expect("a readable folder").file_name().into_string().expect("UTF-8"))
        .map(|name| format!("docs/{name}"))
        .collect();
    paths.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned));
    paths.sort_unstable();
    paths.into_iter().map(read).collect()
}

impl Document {
    /// A document that a test makes up.
    pub fn of(text: &str) -> Document {
        Document { path: "made up".to_owned(), text: text.to_owned() }
    }

    /// Its blocks in their order, or where the first one stands that cannot be checked.
    pub fn blocks(&self) -> Result<Vec<Block>, String> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines().enumerate();
        let mut is_after_blank = true;
        while let Some((at, line)) = lines.next() {
            let number = at + 1;
            let refusal = |why: &str| format!("{}:{number}: {why}", self.path);
            if is_after_blank && line.starts_with("    ") || line.starts_with("~~~") {
                return Err(refusal("write code in a block that begins with ``` and its language"));
            }
            is_after_blank = line.is_empty();
            let Some(info) = line.trim_start().strip_prefix("```") else { continue };
            let (language, check) = check_of(info).map_err(|why| refusal(&why))?;
            let mut text = String::new();
            let mut is_closed = false;
            for (_, line) in lines.by_ref() {
                is_closed = line.trim() == "```";
                if is_closed {
                    break;
                }
                text += line;
                text += "\n";
            }
            if !is_closed {
                return Err(refusal("this block has no end"));
            }
            blocks.push(Block { line: number, language, check, text });
        }
        Ok(blocks)
    }

    /// Its lines outside of blocks, with their numbers.
    pub fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut is_block = false;
        self.text.lines().enumerate().filter_map(move |(at, line)| {
            let is_fence = line.trim_start().starts_with("```");
            is_block ^= is_fence;
            (!is_block && !is_fence).then_some((at + 1, line))
        })
    }
}

/// What stands behind the three backticks.
fn check_of(info: &str) -> Result<(String, Check), String> {
    let (language, how) = info.split_once(' ').unwrap_or((info, ""));
    if let Some(reason) = how.strip_prefix("no-run=\"").and_then(|rest| rest.strip_suffix('"')) {
        if language.is_empty() || reason.len() < REASON_BYTES_MIN {
            return Err(format!("{info:?}: say in words why this block is not run"));
        }
        return Ok((language.to_owned(), Check::NotRun { reason: reason.to_owned() }));
    }
    let check = match (language, how) {
        ("sh", "") => Check::Shell,
        ("sh", "serve") => Check::Serve,
        ("js" | "python", "") => Check::Program { with_next: false },
        ("js" | "python", "with-next") => Check::Program { with_next: true },
        ("text" | "json", "output") => Check::Output,
        ("text", "exchange") => Check::Exchange,
        ("toml", "") => Check::Config,
        ("json", "") => Check::Json,
        _ => {
            return Err(format!(
                "{info:?} is no block that can be checked; see tests/common/documents.rs, or write \
                 no-run=\"reason\""
            ));
        }
    };
    Ok((language.to_owned(), check))
}
