#!/usr/bin/env python3
"""The coefficients of the capacity model in benches/README.md, measured on this machine.

    cargo build --release && python3 benches/capacity.py

Starts a redis-server and a campanile of its own on free ports, both pinned to core 0, and drives
them from core 1. Every coefficient is processor time of one thread or process, from Redis's INFO or
from /proc, over how often something was done: times on the clock would measure the machine. Takes
about two minutes; ends what it started. Needs redis-server, Linux, two cores; nothing but Python's
own library.
"""

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

BINARY = os.path.join(os.path.dirname(__file__), "..", "target", "release", "campanile")
# As a topic's channel is named.
CHANNEL = "campanile:{p%d}:m:u:user%07d"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.02)
    sys.exit(f"waited {seconds} s for {what}")


class Redis:
    def __init__(self, port=None):
        self.port = port or free_port()
        self.folder = tempfile.mkdtemp()
        command = ["taskset", "-c", "0", "redis-server", "--port", str(self.port), "--save", "",
                   "--appendonly", "no", "--dir", self.folder, "--loglevel", "warning",
                   "--client-output-buffer-limit", "pubsub 0 0 0"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until("redis-server", self.answers)

    def answers(self):
        try:
            return Client(self.port)
        except OSError:
            return None

    def info(self, field):
        client = Client(self.port)
        text = client.ask("INFO").decode()
        client.socket.close()
        return float(re.search(rf"^{field}:([\d.]+)", text, re.M).group(1))

    def cpu_s(self):
        return self.info("used_cpu_sys") + self.info("used_cpu_user")

    def end(self):
        self.process.kill()
        self.process.wait()


class Client:
    """One connection that counts what comes and keeps none of it."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, *words):
        self.socket.sendall(command(*words))
        text = b""
        while b"\r\n" not in text:
            text += self.socket.recv(1 << 16)
        head, rest = text.split(b"\r\n", 1)
        if head[:1] != b"$":
            return head
        length = int(head[1:])
        while len(rest) < length + 2:
            rest += self.socket.recv(1 << 16)
        return rest[:length]


def command(*words):
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        word = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
    return b"".join(parts)


def pump(clients, out, pings):
    """Sends `out` on the first client and reads from all, until each has had `pings` answers of +PONG."""
    selector = selectors.DefaultSelector()
    left = {}
    for client in clients:
        client.socket.setblocking(False)
        selector.register(client.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if client is clients[0] else 0), client)
        left[client] = pings if client is clients[0] else 0
    view = memoryview(out)
    while view or left[clients[0]] > 0:
        for key, mask in selector.select(1):
            client = key.data
            if mask & selectors.EVENT_WRITE and view:
                view = view[client.socket.send(view[:1 << 18]):]
                if not view:
                    selector.modify(client.socket, selectors.EVENT_READ, client)
            if mask & selectors.EVENT_READ:
                got = client.socket.recv(1 << 18)
                left[client] -= got.count(b"+PONG")
    for client in clients:
        client.socket.setblocking(True)
    selector.close()


def redis_costs(rows):
    redis = Redis()
    channels = [CHANNEL % (n % 1024, n) for n in range(200_000)]
    batches = [channels[at:at + 512] for at in range(0, len(channels), 512)]
    subscribers = [Client(redis.port) for _ in range(2)]
    how = "SUBSCRIBE, 512 channels a command, 200,000 channels"
    for number, client in enumerate(subscribers):
        cpu, memory = redis.cpu_s(), redis.info("used_memory_dataset") + redis.info("used_memory_overhead")
        pump([client], b"".join(command("SUBSCRIBE", *b) for b in batches) + command("PING"), 0)
        settle(redis)
        cpu, grown = redis.cpu_s() - cpu, redis.info("used_memory_dataset") + redis.info("used_memory_overhead") - memory
        who = "first listener" if number == 0 else "one listener more"
        rows.append(("r_sub" if number == 0 else "r_sub+", f"Redis CPU for a subscription, {who}", 1e6 * cpu / len(channels), "µs", how))
        rows.append(("r_mem" if number == 0 else "r_mem+", f"Redis memory for it, {who}", grown / len(channels), "B", "the same, `INFO memory`"))
    cpu = redis.cpu_s()
    pump([subscribers[0]], b"".join(command("UNSUBSCRIBE", *b) for b in batches), 0)
    settle(redis)
    rows.append(("r_unsub", "Redis CPU for an unsubscription", 1e6 * (redis.cpu_s() - cpu) / len(channels), "µs", "UNSUBSCRIBE, the same"))
    redis.end()
    publish_costs(rows)


def settle(redis):
    """Until Redis has done all it was sent: its processor time stands still."""
    last = -1
    while (now := redis.cpu_s()) - last > 0.002:
        last = now
        time.sleep(0.2)


def publish_costs(rows):
    body = b"x" * 150  # the envelope of a 120-byte payload
    costs = {}
    for listeners in (0, 1, 10, 100):
        redis = Redis()
        clients = [Client(redis.port) for _ in range(1 + listeners)]
        for client in clients[1:]:
            client.ask("SUBSCRIBE", "campanile:{p34}:m:r:room")
        messages = 200_000 if listeners < 10 else 20_000
        one = command("PUBLISH", "campanile:{p34}:m:r:room", body)
        cpu = redis.cpu_s()
        for _ in range(messages // 2000):
            pump(clients, one * 2000 + command("PING"), 1)
        settle(redis)
        costs[listeners] = 1e6 * (redis.cpu_s() - cpu) / messages
        redis.end()
    how = "PUBLISH of 150 bytes, pipelined"
    rows.append(("r_pub", "Redis CPU for a publish that nobody hears", costs[0], "µs", how))
    rows.append(("r_out", "Redis CPU for each node that hears it", (costs[100] - costs[1]) / 99, "µs", f"{how}, 1 and 100 listeners"))
    print(f"publish by listeners: {costs}", file=sys.stderr)


class Server:
    def __init__(self, *options):
        self.port, self.ops = free_port(), free_port()
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(
            [BINARY, "serve", "--listen", f"127.0.0.1:{self.port}", "--ops-listen", f"127.0.0.1:{self.ops}",
             "--shards", "1", "--cores", "0", *options], stderr=self.log)
        until("campanile", lambda: "listening" in open(self.log.name).read())
        time.sleep(1.5)

    def threads(self):
        """Processor seconds of each thread by its name."""
        seconds = {}
        folder = f"/proc/{self.process.pid}/task"
        for task in os.listdir(folder):
            # In nanoseconds; `stat` counts ticks of ten milliseconds.
            name = open(f"{folder}/{task}/comm").read().strip()
            ns = int(open(f"{folder}/{task}/schedstat").read().split()[0])
            seconds[name] = seconds.get(name, 0) + ns / 1e9
        return seconds

    def end(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def load(server, *options):
    before = server.threads()
    run = subprocess.Popen([BINARY, "load", *options, "--url", f"ws://127.0.0.1:{server.port}/ws", "--cores", "1", "--json",
                            "--pid", str(server.process.pid)], stdout=subprocess.PIPE)
    out = run.communicate()[0]
    after = server.threads()
    report = json.loads(out)
    return report, {name: after[name] - before.get(name, 0) for name in after}


def part(threads, name):
    return sum(seconds for thread, seconds in threads.items() if thread.startswith(name))


def server_costs(rows):
    redis = Redis()
    server = Server("--backplane", f"redis://127.0.0.1:{redis.port}")
    cpu = redis.cpu_s()
    options = ("--conns", "15000", "--room-mix", "--hold-s", "0")
    report, threads = load(server, "idle", *options)
    joined = report["connect"]["joined"]
    how = "`load idle --conns 15000 --room-mix`, over Redis"
    rows.append(("s_join", "shard CPU to accept, open and join (and to end it)", 1e6 * part(threads, "shard") / joined, "µs", how))
    rows.append(("b_join", "backplane CPU for the same", 1e6 * part(threads, "backplane") / joined, "µs", how))
    rows.append(("r_join", "Redis CPU for the same", 1e6 * (redis.cpu_s() - cpu) / joined, "µs", how))
    server.end()

    server = Server("--backplane", f"redis://127.0.0.1:{redis.port}")
    held = subprocess.Popen([BINARY, "load", "idle", "--conns", "15000", "--room-mix", "--hold-s", "12", "--json", "--cores", "1",
                             "--url", f"ws://127.0.0.1:{server.port}/ws", "--pid", str(server.process.pid)], stdout=subprocess.PIPE)
    time.sleep(4)
    redis.end()
    before = server.threads()
    redis = Redis(redis.port)
    log = until("a second subscription", lambda: (lambda t: t if t.count("all topics subscribed") > 1 else None)(open(server.log.name).read()))
    after = server.threads()
    line = [line for line in log.splitlines() if "all topics subscribed" in line][-1]
    plain = re.sub("\x1b\\[[0-9;]*m", "", line)
    topics, took_ms = (int(re.search(rf"{key}=(\d+)", plain).group(1)) for key in ("topics", "took_ms"))
    rows.append(("b_resub", "backplane CPU for each topic after a restart of Redis", 1e6 * (part(after, "backplane") - part(before, "backplane")) / topics, "µs",
                 f"the same, then redis-server killed and started: {topics} topics in {took_ms} ms, both on one core"))
    rows.append(("r_resub", "Redis CPU for each", 1e6 * redis.cpu_s() / topics, "µs", "the same"))
    report = json.loads(held.communicate()[0])
    rows.append(("m_conn", "server memory of a connection over Redis, the restart included", report["memory"]["rss_per_conn"], "B", "the same, RSS"))
    server.end()

    message_costs(rows, redis)
    redis.end()


def message_costs(rows, redis):
    server = Server("--backplane", f"redis://127.0.0.1:{redis.port}")
    options = ("--members", "1", "--rooms", "1000", "--window", "1", "--duration-s", "8", "--warmup-s", "0")
    report, threads = load(server, "fanout", *options)
    messages, how = report["fanout"]["messages"], "`load fanout --members 1 --rooms 1000 --window 1`, over Redis"
    rows.append(("b_msg", "backplane CPU to send a message to Redis and to take it from there", 1e6 * part(threads, "backplane") / messages, "µs", how))
    rows.append(("s_msg", "shard CPU to read a publish and write it to its one member", 1e6 * part(threads, "shard") / messages, "µs", how))
    server.end()
    # The same without a publisher: somebody else's messages to 100 rooms of one member each.
    server = Server("--backplane", f"redis://127.0.0.1:{redis.port}")
    held = subprocess.Popen([BINARY, "load", "idle", "--conns", "100", "--room-size", "1", "--hold-s", "9", "--cores", "1",
                             "--url", f"ws://127.0.0.1:{server.port}/ws"], stdout=subprocess.DEVNULL)
    time.sleep(2)
    publisher, messages = Client(redis.port), 200_000
    topics = [f"r:load-{n}" for n in range(100)]
    body = b'\x01\x00' + b'"' + b"x" * 118 + b'"'
    some = b"".join(command("PUBLISH", f"campanile:{{p{partition(topic)}}}:m:{topic}", body) for topic in topics * 10)
    before = server.threads()
    for _ in range(messages // 1000):
        pump([publisher], some + command("PING"), 1)
        time.sleep(0.02)  # about 40,000 a second
    time.sleep(0.5)
    after = server.threads()
    heard = metric(server, "backplane_messages_total")
    if heard < messages:
        sys.exit(f"the server heard {heard} of {messages}")
    rows.append(("b_in", "backplane CPU to take a message from Redis and hand it to one shard", 1e6 * (part(after, "backplane") - part(before, "backplane")) / messages, "µs", "PUBLISH from outside, 100 rooms of one, 40,000 a second"))
    held.communicate()
    server.end()


def partition(topic):
    """As src/backplane/partition.rs has it: FNV-1a, 64 bits, modulo 1024."""
    value = 0xCBF29CE484222325
    for byte in topic.encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value % 1024


def metric(server, name):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ops}/metrics") as answer:
        return sum(float(line.split()[-1]) for line in answer.read().decode().splitlines() if line.startswith(f"campanile_{name}"))


def main():
    rows = []
    redis_costs(rows)
    server_costs(rows)
    print("| | what | measured | how |\n|---|---|---|---|")
    for symbol, what, value, unit, how in rows:
        print(f"| `{symbol}` | {what} | {value:.2f} {unit} | {how} |")


if __name__ == "__main__":
    main()
