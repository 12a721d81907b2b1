"""A client as anybody would write it with the `websockets` library.

Each line on stdin is sent as one message; each message heard is one line on stdout. When stdin
ends, the connection is closed, and the close code is the last line.
"""

import asyncio
import json
import sys

import websockets


async def send_lines(socket):
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await socket.send(line.rstrip("\n"))
    await socket.close()


async def main(url):
    async with websockets.connect(url, subprotocols=["campanile.v1"]) as socket:
        assert socket.subprotocol == "campanile.v1"
        sending = asyncio.create_task(send_lines(socket))
        async for message in socket:
            print(message, flush=True)
        print(json.dumps({"closed": socket.close_code}), flush=True)
        await sending


asyncio.run(main(sys.argv[1]))
