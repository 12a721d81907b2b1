//! Real load balancers in front of nodes: Debian's HAProxy and nginx, with a file and a folder of
//! their own.
//!
//! Invariant: one process each, which is killed when the value is dropped, a failed test included.
#![allow(dead_code)] // each test binary uses its part

use super::redis::wait_until;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub struct Balancer {
    child: Child,
    folder: PathBuf,
}

impl Balancer {
    /// Starts HAProxy with these lines, and waits until it listens on each of these.
    pub fn haproxy(config: &str, listens_on: &[SocketAddr]) -> Balancer {
        Balancer::start("haproxy", config, listens_on, |command, file| {
            command.arg("-db").arg("-f").arg(file);
        })
    }

    /// Starts nginx with what stands inside `stream { … }`; likewise.
    pub fn nginx_stream(config: &str, listens_on: &[SocketAddr]) -> Balancer {
        let module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;";
        Balancer::nginx(&format!("{module}\nSTREAM stream {{\n{config}\n}}\n"), listens_on)
    }

    /// Starts nginx with what stands inside `http { … }`; likewise.
    pub fn nginx_http(config: &str, listens_on: &[SocketAddr]) -> Balancer {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|name| format!("{name}_temp_path {name};\n")).concat();
        let config = format!("STREAM http {{\naccess_log off;\n{temporary}{config}\n}}\n");
        Balancer::nginx(&config, listens_on)
    }

    fn nginx(config: &str, listens_on: &[SocketAddr]) -> Balancer {
        // Without a master there is one process, whose end is the end of all.
        let main = "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log error.log info;\n\
                    events { worker_connections 512; }\n";
        let config = config.replace("STREAM", main);
        Balancer::start("nginx", &config, listens_on, |command, file| {
            let folder = file.parent().expect("a file in a folder");
            command.arg("-p").arg(folder).arg("-c").arg(file).args(["-e", "error.log"]);
        })
    }

    fn start(
        program: &str,
        config: &str,
        listens_on: &[SocketAddr],
        arguments: impl FnOnce(&mut Command, &PathBuf),
    ) -> Balancer {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("campanile-{program}-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let file = folder.join("balancer.conf");
        std::fs::write(&file, config).expect("a file in our own folder");
        let mut command = Command::new(program);
        arguments(&mut command, &file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("{program} does not start ({error}). Install it: apt-get install {program}")
        });
        let mut balancer = Balancer { child, folder };
        wait_until(&format!("{program} listens"), || {
            let has_ended = balancer.child.try_wait().expect("our own child");
            assert_eq!(has_ended, None, "{program} does not take\n{config}");
            listens_on.iter().all(|address| TcpStream::connect(address).is_ok())
        });
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
