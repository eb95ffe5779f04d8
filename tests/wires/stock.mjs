/* Stock: one process of npm socket.io-client's clients, told what to do by the rig; see load.py, whose words these are.

   Run: node stock.mjs '{"host":…}'. Every polling request has a TCP connection of its own.
   Never break: whatever is written down here is what the stock library said; nothing is tried again.
*/

import fs from "node:fs";
import http from "node:http";
import readline from "node:readline";
import { createRequire } from "node:module";

const require = createRequire(new URL("../e2e/package.json", import.meta.url));
const { io } = require("socket.io-client");

const spec = JSON.parse(process.argv[2]);
const OPENING = 50;
const PROGRESS_MS = 250;
const ACK = 3;
const url = `http://${spec.host}:${spec.port}`;
const transports = spec.wire.split(",");
const agent = new http.Agent({ keepAlive: false, maxSockets: Infinity });
const log = fs.openSync(spec.log, "w");
const totals = { acked: 0, heard: 0, left: 0 };
let lines = [];

const write = (...event) => {
  lines.push(JSON.stringify(event));
  if (lines.length > 1000) flush();
};
const flush = () => {
  if (lines.length) fs.writeSync(log, lines.join("\n") + "\n");
  lines = [];
};
const say = (words) => fs.writeSync(1, JSON.stringify(words) + "\n");

class Worker {
  constructor(number) {
    this.name = `${spec.names}${number}`;
    this.next = 0;
    this.unheard = spec.messages;
    this.over = false;
    this.ended = new Promise((resolve) => (this.end = resolve));
    this.heardAll = new Promise((resolve) => (this.hearAll = resolve));
  }

  async enter() {
    const options = { transports, agent, forceNew: true, reconnection: false, timeout: 120000 };
    const socket = (this.socket = io(url, options));
    socket.on("publication", (publication) => {
      write("h", this.name, publication.data.n);
      totals.heard++;
      if (!--this.unheard) this.hearAll();
    });
    // The library passes over an ack that comes once more, so its packets are looked at. The first event asks to be let
    // in, so the one of number 0 has ack 1.
    const acks = new Set();
    socket.io.on("packet", ({ type, id, data }) => {
      if (type !== ACK) return;
      if (acks.has(id)) write("a", this.name, id - 1, data, 0);
      acks.add(id);
    });
    socket.on("disconnect", (reason, details) => this.lose(reason, details));
    socket.on("connect_error", (error) => this.lose(error.message, error));
    socket.io.on("error", (error) => this.lose(error.message, error));
    await Promise.race([new Promise((resolve) => socket.on("connect", resolve)), this.ended]);
    if (this.over) return;
    write("enter", this.name, spec.group, true);
    await Promise.race([socket.emitWithAck("enter"), this.ended]);
  }

  /* Cut off, or never in; of a refused request the status and body are in the transport's error. */
  lose(reason, details) {
    if (this.over) return;
    this.over = true;
    const request = details?.context ?? details?.description?.context;
    const status = request?.status ?? details?.description;
    if (typeof status === "number" && status >= 400) {
      let code = -1;
      try {
        code = JSON.parse(request.responseText).code;
      } catch {
        // not of Engine.IO: any other error
      }
      write("refused", this.name, status, code);
    }
    write("gone", this.name, String(reason));
    this.end();
  }

  async work() {
    if (this.over) return;
    const some = async () => {
      while (this.next < spec.events) {
        const number = this.next++;
        const began = performance.now();
        write("e", this.name, number);
        // By callback: an ack that came twice would call it twice, and resolve a promise once.
        await new Promise((resolve) =>
          this.socket.emit("work", this.name, number, (value) => {
            write("a", this.name, number, value, Math.round((performance.now() - began) * 1000) / 1000);
            totals.acked++;
            resolve();
          }),
        );
      }
    };
    const all = Promise.all([...Array.from({ length: spec.window }, some), this.heardAll]);
    await Promise.race([all, this.ended]);
  }

  async leave() {
    if (this.over) return;
    const wanted = transports.at(-1);
    const engine = this.socket.io.engine;
    if (engine.transport.name !== wanted) {
      await Promise.race([new Promise((resolve) => engine.once("upgrade", resolve)), this.ended]);
    }
    if (this.over) return;
    const seen = await Promise.race([this.socket.emitWithAck("leave"), this.ended]);
    if (this.over) return;
    this.over = true;
    this.socket.disconnect();
    write("left", this.name, seen);
    totals.left++;
  }
}

const commands = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function expect(command) {
  const { value } = await commands.next();
  if (value !== command) process.exit(1); // the rig has ended
}

// The rig does not wait for ever; what happened until then is not to be lost with this process.
process.on("SIGTERM", () => {
  flush();
  process.exit(0);
});
const workers = Array.from({ length: spec.clients }, (_, number) => new Worker(number));
const queue = workers.values();
await Promise.all(
  Array.from({ length: OPENING }, async () => {
    for (const worker of queue) await worker.enter();
  }),
);
say({ event: "ready" });
await expect("go");
const reporting = setInterval(() => say({ event: "progress", ...totals }), PROGRESS_MS);
await Promise.all(workers.map((worker) => worker.work()));
say({ event: "progress", ...totals });
say({ event: "done" });
await expect("leave");
await Promise.all(workers.map((worker) => worker.leave()));
clearInterval(reporting);
flush();
say({ event: "left" });
process.exit(0);
