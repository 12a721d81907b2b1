//! What Redis and its client library cost without us: the floors.

use super::node::Meter;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// How many threads a single message of the floor passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hops {
    /// The publisher writes to the socket, the receiver reads from it.
    None,
    /// A thread of its own at each end, as a backplane is: the message is handed over twice more.
    Two,
}

/// Bare PUBLISH → SUBSCRIBE over two blocking sockets, one message at a time: for each the
/// nanoseconds from the start of the publish to its receipt.
pub fn singles(port: u16, payload: &str, count: usize, hops: Hops) -> Vec<u64> {
    let (publisher, subscriber) = (connect(port), connect(port));
    (&subscriber).write_all(b"*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\nfloor\r\n").expect("it is open");
    let mut subscriber = BufReader::new(subscriber);
    read_reply(&mut subscriber);
    let (heard_out, heard) = mpsc::channel();
    let mut read_all = move |tell: mpsc::Sender<Instant>| {
        for _ in 0..count {
            read_reply(&mut subscriber);
            tell.send(Instant::now()).expect("somebody listens");
        }
    };
    let head = format!("*3\r\n$7\r\nPUBLISH\r\n$5\r\nfloor\r\n${}\r\n", payload.len());
    let command = [head.as_bytes(), payload.as_bytes(), b"\r\n"].concat();
    let mut replies = BufReader::new(publisher.try_clone().expect("a descriptor"));
    let publish = move || (&publisher).write_all(&command).expect("it is open");
    let since = |begun: Instant| {
        let heard: Instant = heard.recv().expect("the listener hears each");
        heard.duration_since(begun).as_nanos() as u64
    };
    match hops {
        Hops::None => std::thread::scope(|scope| {
            scope.spawn(move || read_all(heard_out));
            let one = |_| {
                let begun = Instant::now();
                publish();
                let took_ns = since(begun);
                // Not in the measured time: nothing waits for it.
                read_reply(&mut replies);
                took_ns
            };
            (0..count).map(one).collect()
        }),
        Hops::Two => std::thread::scope(|scope| {
            let (wish_out, wishes) = mpsc::channel::<()>();
            let (read_out, read) = mpsc::channel();
            scope.spawn(move || read_all(read_out));
            scope.spawn(move || {
                read.iter().for_each(|_| heard_out.send(Instant::now()).expect("it is awaited"));
            });
            scope.spawn(move || {
                for () in wishes {
                    publish();
                    read_reply(&mut replies);
                }
            });
            let one = |_| {
                let begun = Instant::now();
                wish_out.send(()).expect("it publishes");
                since(begun)
            };
            let took_ns = (0..count).map(one).collect();
            drop(wish_out);
            took_ns
        }),
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("redis-server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

/// Reads one reply of simple values, or one array of them.
fn read_reply(from: &mut impl BufRead) {
    let mut line = Vec::with_capacity(32);
    from.read_until(b'\n', &mut line).expect("the server lives");
    let number = || std::str::from_utf8(&line[1..]).ok()?.trim_end().parse::<usize>().ok();
    match line[0] {
        b'$' => {
            let mut text = vec![0; number().expect("a length") + 2];
            from.read_exact(&mut text).expect("the server lives");
        }
        b'*' => (0..number().expect("a count")).for_each(|_| read_reply(from)),
        b':' | b'+' => {}
        other => panic!("unexpected reply {:?}", char::from(other)),
    }
}

/// The redis crate as we use it, and nothing else: pipelines of publishes out on one thread, pushes
/// in on another.
pub struct Alone {
    stop: Arc<AtomicBool>,
    heard: Arc<AtomicU64>,
    out: (std::thread::JoinHandle<()>, Meter),
    inn: (std::thread::JoinHandle<()>, Meter),
}

/// Pipelines in flight, and commands in each: what our own transport has at most.
const FLIGHTS: usize = 8;
const COMMANDS: usize = 256;

impl Alone {
    /// Starts both; the channels are `alone0` to `alone99`.
    pub fn start(url: &str, payload: &str) -> Alone {
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ready_out, ready) = mpsc::channel();
        let inn = {
            let (url, stop, heard) = (url.to_owned(), stop.clone(), heard.clone());
            on_a_thread(move || listen(url, stop, heard, ready_out))
        };
        ready.recv().expect("it subscribes");
        let out = {
            let (url, payload, stop) = (url.to_owned(), payload.to_owned(), stop.clone());
            let heard = heard.clone();
            on_a_thread(move || publish(url, payload, stop, heard))
        };
        Alone { stop, heard, out, inn }
    }

    /// Messages that arrived, and the processor time of the publishing and the receiving thread.
    pub fn read(&self) -> (f64, f64, f64) {
        let heard = self.heard.load(Ordering::Relaxed) as f64;
        (heard, self.out.1.cpu_ns() as f64 / 1e9, self.inn.1.cpu_ns() as f64 / 1e9)
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.out.0.join().expect("the publisher did not panic");
        self.inn.0.join().expect("the listener did not panic");
    }
}

fn on_a_thread<F: Future<Output = ()>>(
    make: impl FnOnce() -> F + Send + 'static,
) -> (std::thread::JoinHandle<()>, Meter) {
    let (meter_out, meter) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        meter_out.send(Meter::of_this_thread()).expect("somebody waits for it");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("an event loop").block_on(make());
    });
    (thread, meter.recv().expect("the thread begins with it"))
}

async fn open(url: &str, config: &AsyncConnectionConfig) -> MultiplexedConnection {
    let info = url.into_connection_info().expect("a valid URL");
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let client = Client::open(info.set_redis_settings(settings)).expect("a valid URL");
    let connection = client.get_multiplexed_async_connection_with_config(config);
    connection.await.expect("redis-server listens")
}

async fn listen(
    url: String,
    stop: Arc<AtomicBool>,
    heard: Arc<AtomicU64>,
    ready: mpsc::Sender<()>,
) {
    let config = AsyncConnectionConfig::new().set_push_sender(move |info: PushInfo| {
        if info.kind == PushKind::Message {
            heard.store(heard.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        Ok::<(), redis::aio::SendError>(())
    });
    let mut connection = open(&url, &config).await;
    let channels: Vec<String> = (0..100).map(|n| format!("alone{n}")).collect();
    connection.subscribe(&channels).await.expect("it subscribes");
    ready.send(()).expect("somebody waits for it");
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn publish(url: String, payload: String, stop: Arc<AtomicBool>, heard: Arc<AtomicU64>) {
    let connection = open(&url, &AsyncConnectionConfig::new()).await;
    let published = std::cell::Cell::new(0u64);
    let flight = || {
        let mut connection = connection.clone();
        let (published, heard, stop, payload) = (&published, &heard, &stop, &payload);
        async move {
            while !stop.load(Ordering::Relaxed) {
                // Where the receiver is slower, it sets the pace; else Redis would cut it off.
                if published.get() > heard.load(Ordering::Relaxed) + 64 * 1024 {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    continue;
                }
                let mut pipeline = redis::Pipeline::with_capacity(COMMANDS);
                for _ in 0..COMMANDS {
                    let number = published.replace(published.get() + 1) % 100;
                    pipeline.cmd("PUBLISH").arg(format!("alone{number}")).arg(payload);
                }
                let sent = connection.send_packed_commands(&pipeline, 0, COMMANDS).await;
                sent.expect("redis-server answers");
            }
        }
    };
    futures_util::future::join_all((0..FLIGHTS).map(|_| flight())).await;
}
