// A client as anybody would write it with the `ws` library.
//
// Each line on stdin is sent as one message; each message heard is one line on stdout. When stdin
// ends, the connection is closed, and the close code is the last line.
"use strict";

const readline = require("node:readline");
const { WebSocket } = require("ws");

const socket = new WebSocket(process.argv[2], ["campanile.v1"]);
socket.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
socket.on("message", (data, isBinary) => {
  if (isBinary) throw new Error("the native protocol is text");
  process.stdout.write(data.toString() + "\n");
});
socket.on("close", (code) => process.stdout.write(JSON.stringify({ closed: code }) + "\n"));
socket.on("open", () => {
  if (socket.protocol !== "campanile.v1") throw new Error("protocol: " + socket.protocol);
  const lines = readline.createInterface({ input: process.stdin });
  lines.on("line", (line) => socket.send(line));
  lines.on("close", () => socket.close(1000));
});
