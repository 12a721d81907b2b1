//! The programs of docs/authentication.md make tokens that a node takes, in each language that is
//! installed here.

use crate::client::Client;
use crate::documents::root;
use crate::node::Node;
use std::path::PathBuf;
use std::process::Command;

const SECRET: &str = "change-me-to-a-long-secret";

/// The first program in a language.
fn program(text: &str, language: &str) -> String {
    let begins = text.find(&format!("\n```{language}")).expect("a program in this language") + 1;
    let code = &text[begins..];
    let (_, code) = code.split_once('\n').expect("a line");
    let (code, _) = code.split_once("\n```").expect("it ends");
    code.to_owned()
}

fn is_installed(command: &str) -> bool {
    Command::new(command).arg("--version").output().is_ok()
        || Command::new(command).arg("version").output().is_ok()
}

#[test]
fn a_token_of_each_language_is_taken() {
    let text = std::fs::read_to_string(root().join("docs/authentication.md")).expect("a document");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("token-snippets-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let node = Node::start_ready(&["--shards", "1", "--auth-hmac-secret", SECRET]);
    let languages: [(&str, &str, &[&str]); 4] = [
        ("python", "main.py", &["python3"]),
        ("js", "main.js", &["node"]),
        ("php", "main.php", &["php"]),
        ("go", "main.go", &["go", "run"]),
    ];
    let mut taken = Vec::new();
    for (language, file, command) in languages {
        let path = folder.join(file);
        std::fs::write(&path, program(&text, language)).expect("a file");
        if !is_installed(command[0]) {
            println!("{language} is not installed here");
            continue;
        }
        let output = Command::new(command[0])
            .args(&command[1..])
            .arg(&path)
            .env("GOCACHE", folder.join("cache"))
            .env("HOME", &folder)
            .output()
            .expect("it is installed");
        let token = String::from_utf8(output.stdout).expect("UTF-8");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{language}: {said}");
        let (mut ann, welcome) = Client::greeted(node.addr, &["chat:a"], token.trim());
        assert_eq!(welcome["user_id"], "ann", "{language}");
        ann.say(r#"{"type":"join","room_id":"vip","id":1}"#);
        assert_eq!(ann.hear_type("error")["code"], "forbidden", "{language}");
        taken.push(language);
    }
    std::fs::remove_dir_all(&folder).expect("ours");
    assert!(taken.contains(&"python") && taken.contains(&"js"), "{taken:?}");
}
