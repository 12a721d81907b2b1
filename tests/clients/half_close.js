// Clients that close as a careless program does: the close frame, and the end of the socket's writing
// half right behind it, without waiting for the answer.
//
// Arguments: the URL, how many, and the close code. Prints how many heard which code as one JSON object.
"use strict";

const { WebSocket } = require("ws");

const [url, many, code] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const heard = {};
let left = many;
for (let n = 0; n < many; n += 1) {
  const socket = new WebSocket(url);
  socket.on("error", (error) => console.error(error.message));
  socket.on("open", () => {
    socket.send('{"type":"join","room_id":"tower"}');
    socket.close(code);
    socket._socket.end();
  });
  socket.on("close", (answer) => {
    heard[answer] = (heard[answer] || 0) + 1;
    left -= 1;
    if (left === 0) process.stdout.write(JSON.stringify(heard) + "\n");
  });
}
