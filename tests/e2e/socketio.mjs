/* The stock Socket.IO client (npm `socket.io-client`) against a hub: one scenario for each test of test_socketio.py and
   test_socketio_app.py.

   Run: node socketio.mjs SCENARIO URL TRANSPORTS [ARGUMENT…]; exit status 0, or 1 with what was not so on standard error.
   TRANSPORTS: joined by commas, in the client's order. Every polling request has a TCP connection of its own.
   Never break: nothing here knows more of the hub than its URL, channels and tokens, and each wait is bounded.
*/

import assert from "node:assert/strict";
import http from "node:http";
import https from "node:https";
import { Socket as Engine } from "engine.io-client";
import { io } from "socket.io-client";
import { DEADLINE_MS, nextArguments as next } from "./events.mjs";

const agent = new (process.argv[3].startsWith("https:") ? https : http).Agent({ keepAlive: false, maxSockets: Infinity });

const make = (namespace = "", options = {}) =>
  io(url + namespace, { transports, agent, forceNew: true, reconnectionDelay: 50, reconnectionDelayMax: 500, ...options });

async function connect(namespace, options) {
  const socket = make(namespace, options);
  await next(socket, "connect");
  return socket;
}

/** The ack of an event; rejected where it is an error, or late. */
async function call(socket, name, params) {
  const answer = await socket.timeout(DEADLINE_MS).emitWithAck(name, params);
  if (answer.error) throw Object.assign(new Error(answer.error.message), { code: answer.error.code });
  return answer;
}

const codeOf = (promise) => promise.then(() => 0, (error) => error.code);

/** Resolves once `condition` holds: other workers learn of some things a moment later. */
async function until(condition) {
  for (const end = Date.now() + DEADLINE_MS; !(await condition()); ) assert.ok(Date.now() < end, String(condition));
}

/** Resolves once the connection has settled on the last of `transports`. */
async function settled(socket) {
  const wanted = transports.at(-1);
  const engine = socket.io.engine;
  if (engine.transport.name !== wanted) await next(engine, "upgrade");
  assert.equal(engine.transport.name, wanted);
}

// The scenarios.

/** Events, acks, publications in order, while the connection moves from one transport to the next. */
async function talks(token) {
  const [ann, reader] = [await connect("", { auth: { token } }), await connect()];
  await call(reader, "subscribe", { channel: "room:a" });
  const heard = [];
  reader.on("publication", (publication) => heard.push(publication));
  const count = 30;
  for (let i = 0; i < count / 2; i++) await call(ann, "publish", { channel: "room:a", data: { i } });
  await Promise.all([settled(ann), settled(reader)]);
  for (let i = count / 2; i < count; i++) await call(ann, "publish", { channel: "room:a", data: { i } });
  if (heard.length < count) await next(reader, "publication", () => heard.length === count);
  assert.deepEqual(heard.map((one) => one.data.i), [...Array(count).keys()]);
  assert.equal(heard[0].channel, "room:a");
  assert.equal(heard[0].info.user, "ann");

  assert.equal((await call(ann, "history", { channel: "room:a", limit: 5 })).publications.length, 5);
  assert.equal((await call(ann, "presence_stats", { channel: "room:a" })).num_clients, 1);
  assert.equal(await codeOf(call(reader, "publish", { channel: "members:a", data: 1 })), 103);
  assert.equal(await codeOf(call(reader, "nonsense", {})), 104);
  await call(reader, "unsubscribe", { channel: "room:a" });
  await until(async () => (await call(ann, "presence_stats", { channel: "room:a" })).num_clients === 0);
  for (const socket of [ann, reader]) assert.ok(socket.connected);
}

/** Bytes are put together on the way and refused with an ack; the connection lives. */
async function sendsBytes() {
  const socket = await connect();
  assert.equal(await codeOf(call(socket, "publish", { channel: "chat:a", data: Buffer.from([1, 2, 3]) })), 107);
  await settled(socket);
  assert.equal(await codeOf(call(socket, "publish", { channel: "chat:a", data: [Buffer.from([1]), Buffer.alloc(9)] })), 107);
  await call(socket, "publish", { channel: "chat:a", data: "text" });
}

/** Namespaces: one that is configured, one that is not, a token that is no good; leaving one of two. */
async function joinsNamespaces(token) {
  const main = await connect("", { auth: { token } });
  const admin = main.io.socket("/admin", { auth: { token } });
  await next(admin, "connect");
  assert.notEqual(admin.id, main.id);
  await call(admin, "subscribe", { channel: "chat:b" });
  const heard = next(admin, "publication");
  await call(main, "publish", { channel: "chat:b", data: 1 });
  assert.equal((await heard)[0].data, 1);
  admin.disconnect();
  await call(main, "publish", { channel: "chat:b", data: 2 });
  assert.ok(main.connected);

  const [unknown] = await next(make("/random"), "connect_error");
  assert.equal(unknown.message, "Invalid namespace");
  const [refused] = await next(make("", { auth: { token: "nonsense" } }), "connect_error");
  assert.equal(refused.data.code, 3500);
}

/** Pings and pongs keep an idle connection for several intervals. */
async function staysIdle() {
  const socket = await connect();
  let pings = 0;
  socket.io.on("ping", () => pings++);
  socket.on("disconnect", (reason) => assert.fail(reason));
  await next(socket.io, "ping", () => pings >= 4);
  await call(socket, "publish", { channel: "chat:a", data: 1 });
}

/** Many clients at once: acks for all, and nothing lost or out of order. */
async function isMany(clients, events) {
  const sockets = await Promise.all(Array.from({ length: Number(clients) }, () => connect()));
  const disconnects = [];
  const heard = sockets.map(() => []);
  await Promise.all(
    sockets.map(async (socket, at) => {
      socket.on("disconnect", (reason) => disconnects.push(reason));
      socket.on("publication", (publication) => heard[at].push(publication.data));
      await call(socket, "subscribe", { channel: `chat:${at}` });
    }),
  );
  await Promise.all(
    sockets.map(async (socket, at) => {
      for (let i = 0; i < events; i++) await call(socket, "publish", { channel: `chat:${at}`, data: i });
      if (heard[at].length < events) await next(socket, "publication", () => heard[at].length >= events);
    }),
  );
  assert.deepEqual(disconnects, []);
  for (const one of heard) assert.deepEqual(one, [...Array(Number(events)).keys()]);
  await Promise.all(sockets.map(settled));
}

/** A connection that is cut, again and again: `recovered` is true, and nothing is missing, twice or out of order. */
async function comesBack(rounds) {
  const [reader, writer] = [await connect(), await connect()];
  await settled(reader);
  const heard = [];
  reader.on("publication", (publication) => heard.push([publication.channel, publication.data]));
  const channels = ["chat:x", "chat:y"];
  for (const channel of channels) await call(reader, "subscribe", { channel });
  const expected = { "chat:x": [], "chat:y": [] };
  const publish = async (channel, data) => {
    await call(writer, "publish", { channel, data });
    expected[channel].push(data);
  };
  const complete = () => heard.length === expected["chat:x"].length + expected["chat:y"].length;
  for (let round = 0; round < rounds; round++) {
    await publish(channels[round % 2], `${round} live`);
    if (!complete()) await next(reader, "publication", complete);
    const [lost, back] = [next(reader, "disconnect"), next(reader, "connect")];
    reader.io.engine.close();
    await lost;
    for (const channel of channels) await publish(channel, `${round} missed`);
    await back;
    assert.ok(reader.recovered, `round ${round}`);
    if (!complete()) await next(reader, "publication", complete);
  }
  for (const channel of channels) {
    assert.deepEqual(heard.filter(([name]) => name === channel).map(([, data]) => data), expected[channel]);
  }
}

/** The same of rooms into which an application has let it, of what it emits to all, and of what it sends to one. */
async function comesBackToRooms(rounds) {
  const reader = make();
  await next(reader, "auth");
  const writer = await connect();
  const heard = [];
  reader.on("said", (text) => heard.push(text));
  reader.on("heard", (text) => heard.push(text));
  await settled(reader);
  const rooms = ["room:x", "room:y"];
  for (const room of rooms) await reader.timeout(DEADLINE_MS).emitWithAck("enter", room);
  const expected = { "room:x": [], "room:y": [], all: [] };
  const say = async (to, text) => {
    expected[to].push(`${to} ${text}`);
    await writer.timeout(DEADLINE_MS).emitWithAck("say", to, `${to} ${text}`);
  };
  const complete = () => heard.length === Object.values(expected).flat().length;
  const wait = async () => {
    if (!complete()) await Promise.race(["said", "heard"].map((name) => next(reader, name, complete)));
  };
  for (let round = 0; round < rounds; round++) {
    await say(["room:x", "room:y", "all"][round % 3], `${round} live`);
    await wait();
    const [lost, back, greeted] = [next(reader, "disconnect"), next(reader, "connect"), next(reader, "auth")];
    reader.io.engine.close();
    await lost;
    for (const to of ["room:x", "room:y", "all", "room:x"]) await say(to, `${round} missed`);
    await back;
    assert.ok(reader.recovered, `round ${round}`);
    assert.equal((await greeted)[0].recovered, true);
    await wait();
  }
  for (const [to, texts] of Object.entries(expected)) {
    assert.deepEqual(heard.filter((text) => text.startsWith(to)), texts);
  }
}

// With the application of test_socketio_app.py.

const auth = { name: "ann" };
const bytes = Buffer.from([0, 1, 254, 255]);

/** Events and acks with any JSON and bytes, both ways, in order. */
async function echoes() {
  const socket = await connect("", { auth });
  const heard = [];
  socket.on("echoed", (...args) => heard.push(args));
  const sent = [[], [1, "2", { 3: [true, null] }], [bytes], [{ deep: [bytes, { er: Buffer.alloc(100_000, 7) }] }, "text", bytes]];
  for (const round of [...Array(5).keys()]) {
    for (const args of sent) {
      const ack = await new Promise((resolve) => socket.emit("echo", ...args, (...values) => resolve(values)));
      assert.deepEqual(ack, args, `round ${round}`);
    }
    if (round === 2) await settled(socket);
  }
  if (heard.length < 20) await next(socket, "echoed", () => heard.length === 20);
  assert.deepEqual(heard, Array(5).fill(sent).flat());
}

/** A burst, of which a polling client makes one request: an ack for each, in order. */
async function bursts() {
  const socket = await connect("", { auth });
  const acks = [];
  for (let i = 0; i < 500; i++) socket.emit("echo", i, (value) => acks.push(value));
  await until(async () => {
    await socket.timeout(DEADLINE_MS).emitWithAck("who");
    return acks.length === 500;
  });
  assert.deepEqual(acks, [...Array(500).keys()]);
}

/** Acks in both directions, awaited with timeouts; who is late is passed over, and the connection goes on. */
async function asks() {
  const socket = await connect("", { auth });
  socket.on("question", (value, answer) => answer({ value, bytes }));
  assert.deepEqual(await socket.timeout(DEADLINE_MS).emitWithAck("ask", 7), { value: 7, bytes });
  assert.equal(await socket.timeout(DEADLINE_MS).emitWithAck("ask in vain"), "no ack");
  await assert.rejects(socket.timeout(100).emitWithAck("hang"), /timed out/);
  assert.deepEqual((await socket.timeout(DEADLINE_MS).emitWithAck("fail")).error.code, 100);
  assert.deepEqual(await socket.timeout(DEADLINE_MS).emitWithAck("ask", 8), { value: 8, bytes });
  assert.ok(socket.connected);
}

/** Two namespaces on one connection, each with its own identity and events; one is left, by client and by server. */
async function hasNamespaces() {
  const main = await connect("", { auth });
  const admin = main.io.socket("/admin", { auth: { name: "root" } });
  await next(admin, "connect");
  assert.notEqual(main.id, admin.id);
  for (const [socket, name] of [[main, "ann at /"], [admin, "root at /admin"]]) {
    assert.equal(await socket.timeout(DEADLINE_MS).emitWithAck("who"), name);
  }
  const ended = next(admin, "disconnect");
  admin.emit("kick");
  assert.equal((await ended)[0], "io server disconnect");
  assert.equal(await main.timeout(DEADLINE_MS).emitWithAck("who"), "ann at /");
  admin.connect();
  await next(admin, "connect");
  admin.disconnect();
  assert.equal(await main.timeout(DEADLINE_MS).emitWithAck("who"), "ann at /");
}

/** The words and data of who refuses: the connect handler, a middleware, the hub. An event that is refused has an ack. */
async function isRefused() {
  for (const [namespace, options, message, data] of [
    ["", {}, "who are you?", { code: 103 }],
    ["", { auth: { name: "eve" } }, "not you", { until: "tomorrow", tries: 3 }],
    ["/random", { auth }, "Invalid namespace", undefined],
  ]) {
    const socket = make(namespace, options);
    const [error] = await next(socket, "connect_error");
    assert.equal(error.message, message);
    assert.deepEqual(error.data, data);
    assert.ok(!socket.connected);
    socket.auth = auth;
    if (namespace !== "/random") {
      socket.connect();
      await next(socket, "connect");
      assert.deepEqual((await socket.timeout(DEADLINE_MS).emitWithAck("forbidden")).error, { code: 103, message: "not that" });
    }
  }
}

/** What is volatile reaches a server that is there, and is not kept for one that is not. */
async function isVolatile() {
  const socket = make("", { auth, autoConnect: false });
  socket.volatile.emit("note", "lost");
  socket.emit("note", "kept");
  socket.connect();
  await next(socket, "connect");
  assert.deepEqual(await socket.timeout(DEADLINE_MS).emitWithAck("notes"), ["kept"]);
  await settled(socket);
  // The ack may overtake the answer to the request with the question; until then the client drops what is volatile.
  const { transport } = socket.io.engine;
  if (!transport.writable) await next(transport, "drain");
  socket.volatile.emit("note", "sent");
  let notes;
  await until(async () => (notes = await socket.timeout(DEADLINE_MS).emitWithAck("notes")).length === 2);
  assert.deepEqual(notes, ["kept", "sent"]);
}

/** Rooms across workers: everybody but the sender hears each line once, in order. */
async function meets() {
  const sockets = await Promise.all(Array.from({ length: 8 }, () => connect("", { auth })));
  const heard = sockets.map(() => []);
  sockets.forEach((socket, at) => socket.on("said", (line) => heard[at].push(line)));
  const room = `room:${transports}`;
  for (const socket of sockets) await socket.timeout(DEADLINE_MS).emitWithAck("enter", room);
  const lines = [...Array(20).keys()];
  for (const line of lines) await sockets[0].timeout(DEADLINE_MS).emitWithAck("say", room, line);
  await until(async () => {
    await sockets[0].timeout(DEADLINE_MS).emitWithAck("who");
    return heard.slice(1).every((one) => one.length >= lines.length);
  });
  assert.deepEqual(heard, [[], ...Array(7).fill(lines)]);
}

/** Bare Engine.IO, with the client under Socket.IO's: text and bytes come back in order, across the upgrade too. */
async function echoesMessages() {
  const socket = new Engine(url, { path: "/engine.io/", transports, agent });
  const heard = [];
  socket.on("message", (data) => heard.push(data));
  await next(socket, "open");
  const sent = [...Array(200).keys()].map((i) => (i % 4 ? `${i} ☃` : Buffer.alloc(i * 50, i)));
  for (const [i, data] of sent.entries()) {
    socket.send(data);
    if (i % 20 === 0 && heard.length <= i) await next(socket, "message", () => heard.length > i);
  }
  if (heard.length < sent.length) await next(socket, "message", () => heard.length === sent.length);
  assert.deepEqual(heard.map((one) => (typeof one === "string" ? one : Buffer.from(one))), sent);
  assert.equal(socket.transport.name, transports.at(-1));
  const closed = next(socket, "close");
  socket.close();
  await closed;
}

const scenarios = {
  comesBack, comesBackToRooms, talks, sendsBytes, joinsNamespaces, staysIdle, isMany,
  echoes, bursts, asks, hasNamespaces, isRefused, isVolatile, meets, echoesMessages,
};
const [scenario, url, names, ...rest] = process.argv.slice(2);
const transports = names.split(",");
scenarios[scenario](...rest).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
