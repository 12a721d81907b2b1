"""The two halves of benches/veth.sh, which has the question and makes the namespaces."""

import argparse
import base64
import ctypes
import json
import os
import socket
import sys
import threading
import time

SIZES_KIB = [16, 32, 48, 64, 96, 128]
# limits.socket_unsent_bytes_max, by default.
UNSENT_BYTES_MAX = 64 * 1024
TCP_NOTSENT_LOWAT = 25
# Python has os.setns from 3.12 on.
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
BARE_PORT = 8081
WS_PORT = 8080


def enter(namespace):
    """Moves this thread into a network namespace: sockets it makes belong there."""
    with open(f"/run/netns/{namespace}") as file:
        if LIBC.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def in_namespace(namespace, work):
    """What `work` answers on a thread in that namespace."""
    result = []

    def run():
        enter(namespace)
        try:
            result.append(work())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


def first_send(here, client, address, size):
    """Bytes that a fresh socket takes at once, behind a request that was read."""
    def listen():
        listener = socket.create_server((address, BARE_PORT))
        listener.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        return listener

    listener = in_namespace(here, listen)
    peer = in_namespace(client, lambda: socket.create_connection((address, BARE_PORT)))
    peer.sendall(b"x" * 200)
    accepted, _ = listener.accept()
    accepted.recv(1000)
    accepted.setblocking(False)
    taken = accepted.send(b"y" * size)
    for one in (accepted, peer, listener):
        one.close()
    return taken


class Client:
    """A WebSocket client that is just good enough."""

    def __init__(self, namespace, address):
        connect = lambda: socket.create_connection((address, WS_PORT), timeout=10)
        self.socket = in_namespace(namespace, connect)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass

    def send(self, message):
        payload = json.dumps(message).encode()
        length = len(payload)
        if length < 126:
            head = bytes([0x81, 0x80 | length])
        else:
            head = bytes([0x81, 0xFE]) + length.to_bytes(2, "big")
        self.socket.sendall(head + bytes(4) + payload)

    def receive(self):
        head = self.file.read(2)
        length = head[1]
        if length == 126:
            length = int.from_bytes(self.file.read(2), "big")
        elif length == 127:
            length = int.from_bytes(self.file.read(8), "big")
        return json.loads(self.file.read(length))

    def until(self, kind):
        while (message := self.receive())["type"] != kind:
            pass
        return message

    def close(self):
        self.file.close()
        self.socket.close()


def fill(here, address, size):
    """A room whose history has so many bytes as frames. Its name, its first position, its count."""
    room, bytes_each = f"room-{size}", 1024
    client = Client(here, address)
    client.send({"type": "join", "room_id": room, "id": 1})
    epoch = client.until("ok")["epoch"]
    count = size // bytes_each
    for number in range(count):
        client.send({"room_id": room, "payload": "x" * (bytes_each - 110), "id": number})
        client.until("ok")
    client.close()
    return room, epoch, count


def short_writes(here):
    def get():
        with socket.create_connection(("127.0.0.1", 8090), timeout=10) as ops:
            ops.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: ops.recv(65536), b"")).decode()

    lines = in_namespace(here, get).splitlines()
    total = [line for line in lines if line.startswith("campanile_socket_writes_short_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in total)


def recover(client, here, address, room, epoch, count, joins):
    """Short writes of so many joins, and the median time of one in milliseconds."""
    time.sleep(0.3)  # the server publishes its counters every 100 ms
    before, times = short_writes(here), []
    for _ in range(joins):
        one = Client(client, address)
        began = time.monotonic()
        since = {"epoch": epoch, "offset": 0}
        one.send({"type": "join", "room_id": room, "since": since, "id": 1})
        received = 0
        while received < count:
            received += one.receive()["type"] == "message"
        times.append((time.monotonic() - began) * 1000)
        one.close()
    time.sleep(0.3)
    return short_writes(here) - before, sorted(times)[len(times) // 2]


def wait_until_ready(here, address):
    deadline = time.monotonic() + 10
    while True:
        try:
            return in_namespace(here, lambda: socket.create_connection((address, WS_PORT)).close())
        except OSError:
            if time.monotonic() > deadline:
                sys.exit("the server does not listen")
            time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser()
    for name in ("here", "there", "address"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--joins", type=int, default=20)
    options = parser.parse_args()
    here, there, address = options.here, options.there, options.address
    wait_until_ready(here, address)
    print(f"{options.joins} joins of each size; least of 5 first sends\n")
    print("| join, KiB | first send over MTU 1500, bytes | over loopback | short writes over MTU 1500 "
          "| over loopback | join over MTU 1500, ms | over loopback |")
    print("|---|---|---|---|---|---|---|")
    for kib in SIZES_KIB:
        size = kib * 1024
        sends = [min(first_send(here, client, address, size) for _ in range(5))
                 for client in (there, here)]
        room = fill(here, address, size)
        joins = [recover(client, here, address, *room, options.joins) for client in (there, here)]
        cells = [kib, *sends, *(int(short) for short, _ in joins), *(f"{ms:.2f}" for _, ms in joins)]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


main()
