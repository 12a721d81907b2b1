// The smallest Socket.IO server with rooms: the Redis adapter, WebSocket transport only, and what
// its documentation advises for many connections (native masking by `bufferutil`, forget the
// first HTTP request, which holds its headers in memory).
//
//   node socketio.js PORT REDIS_URL
"use strict";

const { createServer } = require("node:http");
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");

const [port, redisUrl] = process.argv.slice(2);

async function main() {
  const publisher = createClient({ url: redisUrl });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);

  const http = createServer();
  const io = new Server(http, {
    adapter: createAdapter(publisher, subscriber),
    transports: ["websocket"],
    serveClient: false,
    maxHttpBufferSize: 65_536,
  });
  io.engine.on("connection", (raw) => (raw.request = null));
  io.on("connection", (socket) => {
    socket.on("join", (room) => {
      socket.join(room);
      socket.emit("joined", room);
    });
    socket.on("publish", (room, payload) => io.to(room).emit("message", payload));
  });
  http.listen({ host: "127.0.0.1", port: Number(port), backlog: 4096 });
}

main();
