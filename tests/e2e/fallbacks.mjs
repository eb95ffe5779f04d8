/* The stock JavaScript SDK (npm `centrifuge`) over HTTP: one scenario for each test of test_fallbacks.py.

   Run: node fallbacks.mjs SCENARIO URL TRANSPORTS [ARGUMENT…], where TRANSPORTS are names joined by commas; exit status 0,
   or 1 with what was not so on standard error.
   Never break: every request has a TCP connection of its own, so that the kernel may give each to another worker.
*/

import assert from "node:assert/strict";
import { Centrifuge } from "centrifuge";
import { EventSource } from "eventsource";
import { next } from "./events.mjs";
import { Socket } from "./socket.mjs";

const [scenario, url, names, ...rest] = process.argv.slice(2);
const PATHS = { websocket: "connection/websocket", http_stream: "connection/http_stream", sse: "connection/sse" };

/** Answers to /emulation by status; 0 where there was none. */
const statuses = new Map();

async function ask(address, options = {}) {
  const request = { ...options, headers: { ...options.headers, connection: "close" } };
  if (!String(address).endsWith("/emulation")) return fetch(address, request);
  // The SDK does not look at its answers and does not expect it to fail; its stream says what matters.
  const response = await fetch(address, request).catch(() => null);
  const status = response === null ? 0 : response.status;
  statuses.set(status, (statuses.get(status) ?? 0) + 1);
  return response ?? new Response(null, { status: 503 });
}

class Events extends EventSource {
  constructor(address) {
    super(address, { fetch: ask });
  }
}

function make(options = {}) {
  const endpoint = (name) => `${name === "websocket" ? url.replace(/^http/, "ws") : url}/${PATHS[name]}`;
  return new Centrifuge(names.split(",").map((name) => ({ transport: name, endpoint: endpoint(name) })), {
    emulationEndpoint: `${url}/emulation`,
    websocket: Socket,
    eventsource: Events,
    fetch: ask,
    minReconnectDelay: 50,
    maxReconnectDelay: 1000,
    ...options,
  });
}

async function connect(options) {
  const client = make(options);
  const connected = next(client, "connected");
  client.connect();
  return [client, (await connected).transport];
}

async function subscribe(client, channel) {
  const subscription = client.newSubscription(channel);
  const subscribed = next(subscription, "subscribed");
  subscription.subscribe();
  await subscribed;
  return subscription;
}

const codeOf = (promise) => promise.then(() => 0, (error) => error.code);

/** Everything that it does over WebSocket: identity, commands, errors, many publications in order. */
async function works(token) {
  const [[ann, over], [reader]] = [await connect({ token }), await connect()];
  assert.equal(over, names);
  const [own, room] = [await subscribe(ann, "members:room"), await subscribe(reader, "log:room")];
  const echo = next(own, "publication");
  await own.publish([1, null, "grüß\r\ndich 🙂"]);
  const { data, info } = await echo;
  assert.deepEqual([data, info.user], [[1, null, "grüß\r\ndich 🙂"], "ann"]);
  assert.match((await ann.rpc("hub.time", null)).data.time_ns, /^\d{19}$/);
  assert.equal(await codeOf(ann.publish("nowhere:x", {})), 102);
  const refused = reader.newSubscription("members:room");
  const gone = next(refused, "unsubscribed");
  refused.subscribe();
  assert.equal((await gone).code, 103);

  const got = [];
  room.on("publication", ({ data }) => got.push(data));
  const last = next(room, "publication", ({ data }) => data === 49);
  for (let number = 0; number < 50; number++) await ann.publish("log:room", number);
  await last;
  assert.deepEqual(got, Array.from({ length: 50 }, (_, number) => number));
  assert.equal((await room.history({ limit: 3 })).publications.length, 3);
  assert.deepEqual([...statuses.keys()], [204]);
  assert.ok(statuses.get(204) > 50);
  return [ann, reader];
}

async function isTurnedAway() {
  const client = make({ token: "not.a.token" });
  const gone = next(client, "disconnected");
  client.connect();
  assert.equal((await gone).code, 3500);
  return [client];
}

/** The first of the transports can't pass; `expected` is the one that the SDK ends up with. */
async function fallsBack(expected) {
  const [client, over] = await connect();
  assert.equal(over, expected);
  const chat = await subscribe(client, "chat:room");
  const heard = next(chat, "publication");
  await client.publish("chat:room", "hello");
  assert.equal((await heard).data, "hello");
  return [client];
}

/** Each message once and in order through the death of the worker where the session lives. */
async function missesNothing(api, key, workers) {
  const [reader] = await connect();
  const log = await subscribe(reader, "log:kill");
  const got = [];
  log.on("publication", ({ data }) => got.push(data));
  const send = async (number) => {
    const body = JSON.stringify({ channel: "log:kill", data: number, idempotency_key: String(number) });
    for (;;) {
      const response = await ask(`${api}/publish`, { method: "POST", headers: { "X-API-Key": key }, body }).catch(() => null);
      if (response?.status === 200) return;
    }
  };
  for (let number = 0; number < 5; number++) await send(number);
  const { _session: session, _node: node } = reader;
  const owner = Number(workers.split(",")[Number(node.split(".")[1])]);
  const again = next(log, "subscribed");
  process.kill(owner, "SIGKILL");
  for (let number = 5; number < 20; number++) await send(number);
  const { wasRecovering, recovered } = await again;
  assert.deepEqual({ wasRecovering, recovered }, { wasRecovering: true, recovered: true });
  const last = got.includes(20) ? null : next(log, "publication", ({ data }) => data === 20);
  await send(20);
  await last;
  assert.deepEqual(got, Array.from({ length: 21 }, (_, number) => number));
  assert.notEqual(reader._session, session);
  // The session of a dead worker is nobody's, also for the worker that has its place now.
  const body = JSON.stringify({ session, node, data: "{}" });
  for (let number = 0; number < 12; number++) {
    const response = await fetch(`${url}/emulation`, { method: "POST", headers: { "Content-Type": "application/json", connection: "close" }, body });
    assert.equal(response.status, 404);
  }
  return [reader];
}

const SCENARIOS = { works, isTurnedAway, fallsBack, missesNothing };
for (const client of await SCENARIOS[scenario](...rest)) client.disconnect();
