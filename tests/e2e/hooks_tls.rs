//! A service over HTTPS: which certificates are believed.

use crate::client::Client;
use crate::node::Node;
use crate::redis::free_port;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Answers each question with yes, over TLS. The first argument is the port.
const SERVICE: &str = r#"
import http.server, ssl, sys

class Hook(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "14")
        self.end_headers()
        self.wfile.write(b'{"allow":true}')

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hook)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("service.crt", "service.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

struct TlsService {
    child: Child,
    folder: PathBuf,
    port: u16,
}

impl Drop for TlsService {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl TlsService {
    fn start() -> TlsService {
        let name = format!("hooks-tls-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        make_certificates(&folder);
        let port = free_port();
        let mut command = Command::new("python3");
        command.args(["-c", SERVICE, &port.to_string()]).current_dir(&folder);
        let child = command.stderr(Stdio::null()).spawn().expect("python3");
        crate::redis::wait_until("it listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        TlsService { child, folder, port }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A node that asks it by this name, and trusts this file.
    fn node(&self, host: &str, authority: &str) -> Node {
        let url = format!("https://{host}:{}/hook", self.port);
        let hook = ["--hooks-connect-url", &url, "--hooks-tls-ca-file", authority];
        Node::start_ready(&[&["--shards", "1"], &hook[..]].concat())
    }
}

/// An authority, a certificate for 127.0.0.1 that it has signed, and another authority.
fn make_certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::write(folder.join("san"), "subjectAltName = IP:127.0.0.1\n").expect("a file");
    for command in [
        format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.crt"),
        format!("req -x509 {key} -days 2 -subj /CN=other -keyout other.key -out other.crt"),
        format!("req {key} -subj /CN=service -keyout service.key -out service.csr"),
        "x509 -req -in service.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san \
         -out service.crt"
            .to_owned(),
    ] {
        let words = command.split_whitespace();
        let made = Command::new("openssl").current_dir(folder).args(words).output();
        let made = made.expect("openssl starts (apt-get install openssl)");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

fn is_admitted(node: &Node) -> bool {
    match Client::try_open(node.addr, "/ws", "") {
        Ok(_) => true,
        Err(reply) => {
            assert_eq!(reply.status, 503, "there is no answer, and that is what it says");
            false
        }
    }
}

#[test]
fn a_service_over_tls_is_believed_only_with_its_own_name_and_a_known_authority() {
    let service = TlsService::start();
    assert!(is_admitted(&service.node("127.0.0.1", &service.file("ca.crt"))));
    assert!(!is_admitted(&service.node("localhost", &service.file("ca.crt"))), "another name");
    let kept = service.file("kept.crt");
    std::fs::copy(service.file("other.crt"), &kept).expect("a file");
    let node = service.node("127.0.0.1", &kept);
    assert!(!is_admitted(&node), "another authority");
    let both = ["other.crt", "ca.crt"].map(|name| std::fs::read(service.file(name)).unwrap());
    std::fs::write(&kept, both.concat()).expect("a file");
    assert!(is_admitted(&node), "the file has changed, and is read again");
}
