// A chat server as it is usually written with `ws` and Redis: a Map of rooms, one Redis channel that
// every instance listens to, JSON both ways.
//
//   node ws.js PORT REDIS_URL
"use strict";

const { WebSocket, WebSocketServer } = require("ws");
const { createClient } = require("redis");

const CHANNEL = "messages";
const HEARTBEAT_MS = 25_000;
const [port, redisUrl] = process.argv.slice(2);
const rooms = new Map();

function join(room, socket) {
  if (!rooms.has(room)) rooms.set(room, new Set());
  rooms.get(room).add(socket);
}

function leave(room, socket) {
  const members = rooms.get(room);
  members?.delete(socket);
  if (members?.size === 0) rooms.delete(room);
}

function deliver(text) {
  const { room_id: room } = JSON.parse(text);
  for (const socket of rooms.get(room) ?? []) {
    if (socket.readyState === WebSocket.OPEN) socket.send(text);
  }
}

async function main() {
  const publisher = createClient({ url: redisUrl });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  await subscriber.subscribe(CHANNEL, deliver);

  const server = new WebSocketServer({
    host: "127.0.0.1",
    port: Number(port),
    backlog: 4096,
    perMessageDeflate: false,
    maxPayload: 65_536,
  });
  server.on("connection", (socket, request) => {
    const room = new URL(request.url, "ws://localhost").searchParams.get("room_id");
    socket.isAlive = true;
    join(room, socket);
    socket.on("pong", () => (socket.isAlive = true));
    socket.on("error", () => socket.terminate());
    socket.on("close", () => leave(room, socket));
    socket.on("message", (data) => {
      const { payload } = JSON.parse(data);
      publisher.publish(CHANNEL, JSON.stringify({ type: "message", room_id: room, payload }));
    });
    socket.send(JSON.stringify({ type: "ok", room_id: room }));
  });
  setInterval(() => {
    for (const socket of server.clients) {
      if (!socket.isAlive) {
        socket.terminate();
        continue;
      }
      socket.isAlive = false;
      socket.ping();
    }
  }, HEARTBEAT_MS);
}

main();
