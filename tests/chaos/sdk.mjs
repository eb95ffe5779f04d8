/* Stock JavaScript SDKs (npm `centrifuge`), many in one process: the role `sdk.mjs` of tests/chaos/load.py.

   Run: node sdk.mjs '{"url":…,"names":[…],"channels":[[…],…],"log":FILE}'; commands and answers are lines of JSON, and the
   events are those of tests/chaos/events.py. Packages: those of tests/e2e.
*/

import { createWriteStream } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { Socket } from "../e2e/socket.mjs";

const require = createRequire(new URL("../e2e/", import.meta.url));
const { Centrifuge } = require("centrifuge");

const POLL_MS = 20;
const READY_TIMEOUT_S = 60;
const SHOWN = 5;

const config = JSON.parse(process.argv[2]);
const log = createWriteStream(config.log);
const now = () => Number(process.hrtime.bigint() / 100000n) / 1e4;
const write = (...event) => log.write(JSON.stringify(event) + "\n");
const flush = () => new Promise((resolve) => log.write("", resolve));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function make(name, channels) {
  let port = 0;
  // The checker finds the worker that served a connection by its port.
  class Noted extends Socket {
    constructor(...args) {
      super(...args);
      this.once("upgrade", (response) => { port = response.socket.localPort; });
    }
  }
  const client = new Centrifuge(config.url, { websocket: Noted, minReconnectDelay: 100, maxReconnectDelay: 2000 });
  let up = false;
  client.on("connected", () => { up = true; write("c", now(), name, port); });
  const down = (asked) => (context) => { if (up) write("g", now(), name, context.code ?? 1006, asked); up = false; };
  client.on("connecting", down(false));
  client.on("disconnected", down(true));
  const places = {};
  for (const channel of channels) {
    const place = (places[channel] = { online: false, epoch: "", offset: 0 });
    const subscription = client.newSubscription(channel, { recoverable: true, positioned: true, minResubscribeDelay: 50, maxResubscribeDelay: 1000 });
    subscription.on("subscribed", (context) => {
      const position = context.streamPosition ?? { epoch: "", offset: 0 };
      place.online = true;
      place.epoch = position.epoch;
      write("s", now(), name, channel, position.epoch, position.offset, context.wasRecovering, context.recovered);
      if (!context.recovered) place.offset = position.offset;
    });
    subscription.on("subscribing", (context) => {
      if (place.online && context.code >= 2500) write("u", now(), name, channel, context.code);
      place.online = false;
    });
    subscription.on("publication", (context) => {
      place.offset = context.offset;
      write("m", now(), name, channel, context.offset, context.data.id);
    });
    subscription.subscribe();
  }
  client.connect();
  return { name, client, places };
}

async function settle({ tops = null, timeout_s = READY_TIMEOUT_S }) {
  const isBehind = ({ places }) =>
    Object.entries(places).some(([channel, place]) => {
      if (tops === null) return !place.online;
      if (!(channel in tops)) return false;
      const [epoch, offset] = tops[channel];
      return !place.online || place.epoch !== epoch || place.offset !== offset;
    });
  const deadline = now() + timeout_s;
  let behind = sdks.filter(isBehind);
  while (behind.length && now() < deadline) {
    await pause(POLL_MS);
    behind = sdks.filter(isBehind);
  }
  return { behind: behind.length, who: behind.slice(0, SHOWN).map(({ name }) => name), refused: [] };
}

function reconnect({ count }) {
  for (const { client } of [...sdks].sort(() => Math.random() - 0.5).slice(0, count)) {
    client.disconnect();
    client.connect();
  }
  return { ports: [] };
}

const COMMANDS = { ready: settle, settle, reconnect, stall: () => ({ ports: [], channels: [] }) };
const sdks = config.names.map((name, i) => make(name, config.channels[i]));

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.do === "stop") break;
  const answer = await COMMANDS[command.do](command);
  await flush();
  console.log(JSON.stringify(answer));
}
for (const { client } of sdks) client.disconnect();
log.end(() => process.exit(0));
