// npm ws against the echo server: text and binary of many sizes, fragments, with and without compression.
// Usage: node ws_echo.mjs ws://127.0.0.1:PORT/PATH; its exit status is 0 if everything came back as it was sent.
import assert from "node:assert";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createRequire } from "node:module";

const WebSocket = createRequire(new URL("../e2e/package.json", import.meta.url))("ws");
const MODES = [
  false,
  true,
  { threshold: 0 },
  { threshold: 0, serverNoContextTakeover: true, clientNoContextTakeover: true },
  { threshold: 0, serverMaxWindowBits: 10, clientMaxWindowBits: 10 },
];

async function echo(socket, data) {
  socket.send(data);
  const [message, binary] = await once(socket, "message");
  assert.strictEqual(binary, typeof data !== "string");
  assert.ok(message.equals(Buffer.from(data)), `${message.length} bytes came back for ${data.length}`);
}

for (const perMessageDeflate of MODES) {
  const socket = new WebSocket(process.argv[2], { perMessageDeflate });
  await once(socket, "open");
  for (const size of [0, 1, 125, 126, 127, 1024, 65535, 65536, 1 << 20]) {
    await echo(socket, "x".repeat(size) + "☃");
    await echo(socket, randomBytes(size));
    await echo(socket, Buffer.alloc(size));
  }
  socket.send("one ", { fin: false });
  socket.ping("between");
  socket.send("two", { fin: true });
  const pong = once(socket, "pong");
  const [message] = await once(socket, "message");
  assert.strictEqual(message.toString(), "one two");
  assert.strictEqual((await pong)[0].toString(), "between");
  socket.close(4000, "done");
  assert.strictEqual((await once(socket, "close"))[0], 4000);
}
