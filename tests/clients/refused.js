// A client that is not admitted. Prints what it sees, as a page in a browser would, as one JSON object.
//
// Arguments: the URL.
"use strict";

const { WebSocket } = require("ws");

const socket = new WebSocket(process.argv[2], "campanile.v1");
const messages = [];
socket.onmessage = (event) => messages.push(JSON.parse(event.data));
socket.onerror = (event) => messages.push({ failed: event.message });
socket.onclose = (event) => {
  console.log(JSON.stringify({ messages, code: event.code, reason: event.reason }));
};
