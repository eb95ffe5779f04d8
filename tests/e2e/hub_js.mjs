/* hub/static/hub.js at a real hub, in Node and in Chromium: one scenario for each test of test_hub_js.py.

   Run: node --expose-gc hub_js.mjs SCENARIO URL [ARGUMENTS]; exit status 0, or 1 with what was not so on standard error.
   Never break: each wait is bounded by DEADLINE_MS.
*/

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { connect, createServer } from "node:net";
import { once } from "node:events";
import { WebSocket } from "ws";
import { Hub, HubError, cursorKey } from "../../hub/static/hub.js";

globalThis.WebSocket ??= WebSocket; // Node has one of its own from 22 on

const DEADLINE_MS = 30_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"];
const CHANNELS = ["log:a", "log:b"];
const WIRES = ["websocket", "sse", "poll"];
const CYCLES = 1000;

async function until(condition, what) {
  for (const end = Date.now() + DEADLINE_MS; !(await condition()); ) {
    assert.ok(Date.now() < end, `${what}: not within ${DEADLINE_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Publish past the client; again under the same key until a worker has taken it. */
async function publish(url, channel, data) {
  const key = channel.startsWith("log:") ? { idempotency_key: `${channel} ${data}` } : {};
  const body = JSON.stringify({ channel, data, ...key });
  await until(async () => {
    const answer = await fetch(`${url}/publish`, { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => null); // its worker was killed
    if (answer && ![200, 503].includes(answer.status)) assert.fail(await answer.text());
    return answer?.status === 200;
  }, `publishing ${data}`);
}

/** A TCP proxy, whose `blocks(head)` says which connections get no answer, by the first bytes of their first request. */
async function proxy(url, blocks) {
  const to = new URL(url);
  const pairs = new Set();
  const server = createServer((client) => {
    client.on("error", () => {});
    client.once("data", (head) => {
      if (blocks(String(head))) return client.destroy();
      const hub = connect(Number(to.port), to.hostname);
      const pair = [client, hub];
      pairs.add(pair);
      hub.on("error", () => client.destroy());
      hub.write(head);
      client.pipe(hub).pipe(client);
      client.on("close", () => (pairs.delete(pair), hub.destroy()));
      hub.on("close", () => client.destroy());
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = () => pairs.forEach(([client]) => client.destroy());
  return { url: `http://127.0.0.1:${server.address().port}`, cut, end: () => (server.close(), cut()) };
}

const isUpgrade = (head) => /^upgrade: websocket/im.test(head);
const isStream = (head) => head.startsWith("GET /sse");

/** What all clients have seen, to be shown where a scenario fails. */
const CLIENTS = [];

/** An open client that notes what comes. */
function client(url, channels, options = {}, subscribing = {}) {
  const hub = new Hub({ url, ...options });
  const seen = { states: [], channels: {}, lost: 0, errors: {}, joins: [], leaves: [] };
  hub.on("state", (state) => seen.states.push(state));
  for (const channel of channels) {
    const subscription = hub.subscribe(channel, subscribing);
    seen.channels[channel] = [];
    subscription.on("publication", ({ data }) => seen.channels[channel].push(data));
    subscription.on("lost", () => (seen.lost += 1));
    subscription.on("error", (error) => (seen.errors[channel] = error));
    subscription.on("join", (info) => seen.joins.push(info.client));
    subscription.on("leave", (info) => seen.leaves.push(info.client));
  }
  hub.open();
  CLIENTS.push(seen);
  return { hub, seen };
}

const connected = ({ hub }) => until(() => hub.state.name === "connected", "a connection");
/** Its `stream` channels tell where they are: what is published from now on comes. */
const placed = ({ hub }, channels) => until(() => channels.every((one) => hub.subscribe(one).position), "a position");

const range = (from, to, step = 1) => Array.from({ length: Math.ceil((to - from) / step) }, (_, i) => from + i * step);

function checkNumbers(seen, count) {
  assert.equal(seen.lost, 0);
  CHANNELS.forEach((channel, i) => assert.deepEqual(seen.channels[channel], range(i, count, 2)));
}

// The scenarios.

function keys(url, ...pairs) {
  for (const pair of pairs) {
    const [channel, key] = JSON.parse(pair);
    assert.equal(cursorKey(channel), key);
  }
}

/** What each wire has in common. */
async function talks(url, wire) {
  await publish(url, "value:v", "old");
  const listener = client(url, ["log:a", "value:v", "none:n"], { wires: [wire] });
  const { hub, seen } = listener;
  await until(() => seen.channels["value:v"].length, "the newest value");
  assert.deepEqual(seen.channels["value:v"], ["old"]);
  await placed(listener, ["log:a"]);
  assert.equal(hub.state.wire, wire);
  const receipts = await Promise.all(range(0, 40).map((number) => hub.publish("log:a", number)));
  assert.equal(receipts[0].ack, "memory");
  await until(() => seen.channels["log:a"].length === 40, "40 messages");
  assert.deepEqual(seen.channels["log:a"], range(0, 40));
  await hub.publish("value:v", "new");
  await until(() => seen.channels["value:v"].length === 2, "a newer value");
  await assert.rejects(hub.publish("log:a", undefined), HubError);
  await assert.rejects(hub.publish("read:x", 1), (error) => error instanceof HubError && error.code === 103);

  // A channel more while connected, one that is not granted, and one less.
  const late = hub.subscribe("log:late");
  const got = [];
  late.on("publication", ({ data }) => got.push(data));
  let refusal;
  hub.subscribe("nowhere:x").on("error", (error) => (refusal = error));
  await until(() => refusal, "a refusal");
  assert.equal(refusal.code, 102);
  await placed(listener, ["log:late"]);
  await publish(url, "log:late", "x");
  await until(() => got.length, "a message of the late channel");
  late.unsubscribe();
  await publish(url, "log:late", "y");
  await publish(url, "log:a", "last");
  await until(() => seen.channels["log:a"].includes("last"), "the last message");
  assert.deepEqual(got, ["x"]);
  assert.deepEqual(seen.errors, {});
  assert.ok(!seen.states.some(({ name }) => name === "waiting" || name === "closed"), JSON.stringify(seen.states));

  // What was missed while it was closed.
  hub.close();
  await publish(url, "log:a", "missed");
  hub.open();
  await until(() => seen.channels["log:a"].includes("missed"), "what was missed");
  assert.deepEqual(seen.channels["log:a"], [...range(0, 40), "last", "missed"]);
  hub.close();
}

/** All workers are killed in the middle of what is published. */
async function survives(url, wire, pids) {
  const listener = client(url, CHANNELS, { wires: [wire] });
  await placed(listener, CHANNELS);
  for (let number = 0; number < 60; number += 1) {
    if (number === 30) for (const pid of pids.split(",")) process.kill(Number(pid), "SIGKILL");
    await publish(url, CHANNELS[number % 2], number);
  }
  await until(() => CHANNELS.every((one) => listener.seen.channels[one].length >= 30), "all messages");
  checkNumbers(listener.seen, 60);
  assert.ok(listener.seen.states.some(({ name }) => name === "waiting"), "it was never cut off");
  listener.hub.close();
}

/** The network takes the wires away, one by one, while numbers are published. */
async function changes(url) {
  const blocked = new Set();
  const gate = await proxy(url, (head) => blocked.has(isUpgrade(head) ? "websocket" : isStream(head) ? "sse" : "poll"));
  const listener = client(gate.url, CHANNELS);
  let number = 0;
  const some = async () => {
    for (const end = number + 20; number < end; number += 1) await publish(url, CHANNELS[number % 2], number);
  };
  await placed(listener, CHANNELS);
  for (const wire of ["websocket", "sse", "poll"]) {
    await until(() => listener.hub.state.name === "connected" && listener.hub.state.wire === wire, wire);
    await some();
    blocked.add(wire);
    if (wire === "poll") blocked.clear();
    gate.cut();
    await some();
  }
  await until(() => CHANNELS.every((one) => listener.seen.channels[one].length >= 60), "all messages");
  checkNumbers(listener.seen, 120);
  listener.hub.close();
  gate.end();
}

/** Without WebSockets, and without event streams as well, the next wire is tried at once. */
async function fallsBack(url) {
  for (const [blocks, wire] of [[isUpgrade, "sse"], [(head) => isUpgrade(head) || isStream(head), "poll"]]) {
    const gate = await proxy(url, blocks);
    const listener = client(gate.url, CHANNELS);
    await connected(listener);
    assert.equal(listener.hub.state.wire, wire);
    assert.ok(!listener.seen.states.some(({ name }) => name === "waiting"));
    listener.hub.close();
    gate.end();
  }
}

/** What is published without a connection waits within its bound, and goes out in order, each once. */
async function queues(url, wire) {
  const reader = client(url, ["log:a"]);
  await placed(reader, ["log:a"]);
  let closed = true;
  let answersToLose = wire === "websocket" ? 0 : 1;
  const gate = await proxy(url, (head) => closed || (head.startsWith("POST") && swallows(head)));
  // Let the hub take it, and lose its answer.
  const swallows = (head) => {
    if (!answersToLose) return false;
    answersToLose -= 1;
    const to = new URL(url);
    const hub = connect(Number(to.port), to.hostname);
    hub.write(head);
    hub.once("data", () => hub.destroy());
    return true;
  };
  const writer = client(gate.url, [], { wires: [wire], queue: 10 });
  const early = range(0, 10).map((number) => writer.hub.publish("log:a", number));
  if (wire === "websocket") {
    const isFull = (error) => error instanceof HubError && error.temporary && error.message === "10 publications wait already";
    await assert.rejects(writer.hub.publish("log:a", 10), isFull);
  }
  closed = false;
  await Promise.all(early);
  await writer.hub.publish("log:a", 11);
  await until(() => reader.seen.channels["log:a"].includes(11), "the last message");
  assert.deepEqual(reader.seen.channels["log:a"], [...range(0, 10), 11]);
  assert.equal(answersToLose, 0);

  closed = true;
  gate.cut();
  await until(() => writer.hub.state.name !== "connected" || wire !== "websocket", "the end of the connection");
  const waiting = assert.rejects(writer.hub.publish("log:a", 12), /the client was closed/);
  writer.hub.close();
  await waiting;
  await assert.rejects(writer.hub.publish("log:a", 13), /closed/);
  reader.hub.close();
  gate.end();
}

/** A token as the hub wants it (RFC 7519), made now: starting Node may take longer than a short one lives. */
function mint(secret, ttl, claims = {}) {
  const encode = (part) => Buffer.from(JSON.stringify(part)).toString("base64url");
  const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ sub: "ann", exp: Math.floor(Date.now() / 1000) + ttl, ...claims })}`;
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}

/** A token that ends is replaced by a fresh one, over WebSocket in place; one that is no good ends the client. */
async function refreshes(url, wire, secret) {
  const short = mint(secret, 3);
  const tokens = [short, mint(secret, 60)];
  let asked = 0;
  const listener = client(url, ["log:a"], { wires: [wire], token: async () => tokens[asked++] });
  await placed(listener, ["log:a"]);
  const first = listener.hub.state;
  await publish(url, "log:a", 1);
  await until(() => listener.seen.channels["log:a"].length === 1, "a message");
  if (wire === "poll") {
    // A poll that was let in goes on; the first request after it is refused, and repeated with the fresh token.
    const ends = async () => (await fetch(`${url}/poll?channel=log:a&wait=0&token=${short}`)).status === 401;
    await until(ends, "the end of the token");
    await listener.hub.publish("log:a", 2);
  } else if (wire === "websocket") {
    await until(() => asked === 2, "a fresh token");
    // Until who had not refreshed would have been closed: nothing else can be seen of it.
    await new Promise((resolve) => setTimeout(resolve, 3000));
    assert.equal(listener.hub.state, first);
    await publish(url, "log:a", 2);
  } else {
    await until(() => listener.hub.state.name === "connected" && listener.hub.state !== first, "the fresh token's connection");
    assert.ok(listener.seen.states.some(({ code }) => code === 3005));
    await publish(url, "log:a", 2);
  }
  await until(() => listener.seen.channels["log:a"].length === 2, "another message");
  assert.equal(asked, 2);
  assert.equal(listener.seen.lost, 0);
  listener.hub.close();

  const bad = client(url, ["log:a"], { wires: [wire], token: "nonsense" });
  await until(() => bad.hub.state.name === "closed", "the end");
  assert.equal(bad.hub.state.code, 3500);
  await assert.rejects(bad.hub.publish("log:a", 1), /closed/);
}

/** A token that had ended before: it is asked for again, and one that can't be is final. */
async function expired(url, wire, ended, long) {
  const tokens = [ended, long];
  const listener = client(url, ["log:a"], { wires: [wire], token: () => tokens.shift() });
  await placed(listener, ["log:a"]);
  assert.deepEqual(tokens, []);
  listener.hub.close();
  const fixed = client(url, ["log:a"], { wires: [wire], token: ended });
  await until(() => fixed.hub.state.name === "closed", "the end");
  assert.equal(fixed.hub.state.code, 109);
}

/** Who comes and goes, and who is there. */
async function watches(url, wire) {
  const listener = client(url, ["room:a"], { wires: [wire] }, { joinLeave: true });
  await connected(listener);
  const guest = client(url, ["room:a"], { wires: ["websocket"] });
  await connected(guest);
  const { client: id } = guest.hub.state;
  await until(() => listener.seen.joins.includes(id), "a join");
  if (wire === "websocket") assert.ok(id in (await listener.hub.presence("room:a")));
  else await assert.rejects(listener.hub.presence("room:a"), (error) => error.code === 108);
  guest.hub.close();
  await until(() => listener.seen.leaves.includes(id), "a leave");
  listener.hub.close();
}

/** History, calls, and what is asked of a channel at each of its beginnings; event streams and polls have but that (lists). */
async function asks(url, wire) {
  for (let number = 0; number < 5; number += 1) await publish(url, "log:a", number);
  const { hub, seen } = client(url, ["log:a"], { wires: [wire] });
  await connected({ hub });
  if (wire !== "websocket") {
    for (const asked of [hub.history("log:a"), hub.rpc("hub.time")]) await assert.rejects(asked, { code: 108, temporary: true });
    return hub.close();
  }
  await placed({ hub }, ["log:a"]);
  const { publications, offset, epoch } = await hub.history("log:a", { limit: 2, reverse: true });
  assert.deepEqual([publications.map(({ data }) => data), offset], [[4, 3], 5]);
  const rest = await hub.history("log:a", { limit: -1, since: { epoch, offset: 3 } });
  assert.deepEqual(rest.publications.map(({ data }) => data), [3, 4]);
  assert.ok(Number((await hub.rpc("hub.time")).time_ns) > 1e18);
  await assert.rejects(hub.rpc("hub.nothing"), { code: 104 });

  const values = [];
  let wanted = ["a"];
  await publish(url, "value:x", { a: 1, b: 2 });
  hub.subscribe("value:x", { data: () => ({ fields: wanted }) }).on("publication", ({ data }) => values.push(data));
  await until(() => values.length, "a value");
  wanted = ["b"];
  hub.close();
  hub.open();
  await until(() => values.length > 1, "the value of the next connection");
  assert.deepEqual(values, [{ a: 1 }, { b: 2 }]); // each once
  assert.deepEqual(seen.errors, {});
  hub.close();
}

/** A watch list with a pattern, and a channel with fields: each value once, in order, over each wire. */
async function lists(url, wire) {
  const hub = new Hub({ url, wires: [wire] });
  const seen = [];
  const errors = [];
  const note = ({ data, tags }) => seen.push([tags?.channel ?? "", data]);
  await publish(url, "value:a", { price: 1, bid: 0 });
  for (const [channel, data] of [
    ["value:$watch", { symbols: ["a", "b*"], fields: ["price"], marks: true }],
    ["value:c", { fields: ["bid"] }],
    ["log:a", { whatever: "an application is told" }],
  ]) {
    const sub = hub.subscribe(channel, { data });
    sub.on("publication", note);
    sub.on("error", (error) => errors.push(error));
  }
  hub.open();
  const values = (number) => [["value:a", { price: number }], ["value:b1", { price: number }], ["", { bid: number }]];
  await until(() => seen.length === 1, "the first value");
  let expected = [["value:a", { price: 1 }]];
  for (const number of [2, 3]) {
    for (const symbol of ["a", "b1", "c"]) await publish(url, `value:${symbol}`, { price: number, bid: number });
    expected = [...expected, ...values(number)];
    await until(() => seen.length >= expected.length, `values ${number}`);
  }
  await publish(url, "value:a", { price: 4 }); // what comes again by another poll comes before it
  expected.push(["value:a", { price: 4 }]);
  await until(() => seen.some(([, { price }]) => price === 4), "the last value");
  assert.deepEqual(seen.map((one) => JSON.stringify(one)).sort(), expected.map((one) => JSON.stringify(one)).sort());
  const wide = hub.subscribe("value:d", { data: { fields: ["x".repeat(65)] } });
  wide.on("error", (error) => errors.push(error));
  await until(() => errors.length, "a refusal");
  assert.deepEqual(errors.map(({ code }) => code), [107]);
  await publish(url, "value:a", { price: 5 });
  await until(() => seen.some(([, { price }]) => price === 5), "the value behind the refusal");
  hub.close();
}

/** Channels by tokens of their own: a fresh one in time, and what is refused spoils nothing else. */
async function grants(url, wire, secret) {
  const sent = [];
  globalThis.WebSocket = class extends globalThis.WebSocket {
    send(message) {
      sent.push(...message.split("\n").map((line) => Object.keys(JSON.parse(line)).at(-1)));
      super.send(message);
    }
  };
  const hub = new Hub({ url, wires: [wire], token: mint(secret, 3600) });
  const [seen, errors, states] = [[], {}, []];
  let [asked, lost] = [0, 0];
  const sources = {
    "held:a": (channel) => mint(secret, (asked += 1) === 1 ? 5 : 3600, { channel }),
    "held:fixed": mint(secret, 3600, { channel: "held:fixed" }),
    "held:ended": mint(secret, -10, { channel: "held:ended" }),
    "held:other": mint(secret, 3600, { channel: "held:fixed" }),
    "held:none": async () => "",
  };
  for (const [channel, token] of Object.entries(sources)) {
    const sub = hub.subscribe(channel, { token });
    sub.on("publication", ({ data }) => seen.push(data));
    sub.on("lost", () => (lost += 1));
    sub.on("error", ({ code }) => (errors[channel] = code));
  }
  hub.on("state", ({ name, code }) => states.push([name, code ?? 0]));
  hub.open();
  await until(() => ["held:a", "held:fixed"].every((one) => hub.subscribe(one).position), "its channels");
  await until(() => Object.keys(errors).length === 3, "refusals");
  assert.deepEqual(errors, { "held:ended": 109, "held:other": 103, "held:none": 103 });
  await publish(url, "held:a", 1);
  await until(() => seen.length === 1, "a message");
  await until(() => asked >= 2, "a fresh token");
  await publish(url, "held:a", 2);
  await publish(url, "held:fixed", 3);
  await until(() => seen.length === 3, "messages behind the first token's end");
  assert.deepEqual([...seen].sort(), [1, 2, 3]);
  assert.equal(asked, 2);
  assert.equal(lost, 0);
  const counts = ["subscribe", "sub_refresh"].map((method) => sent.filter((one) => one === method).length);
  assert.deepEqual(counts, wire === "websocket" ? [5, 1] : [0, 0]); // in place
  assert.ok(states.every(([name, code]) => name !== "waiting" || code === 3006), JSON.stringify(states));
  assert.ok(wire === "sse" || states.every(([name]) => name !== "waiting"), JSON.stringify(states));
  hub.close();
}

/** How many symbols do not fit into a watch list. */
async function leftOut(url, wire) {
  const hub = new Hub({ url, wires: [wire] });
  const told = [];
  let symbols = ["z*"];
  hub.subscribe("value:$watch", { data: () => ({ symbols }) }).on("leftOut", (count) => told.push(count));
  hub.on("notice", (data) => assert.fail(JSON.stringify(data)));
  await publish(url, "value:z0", 0);
  hub.open();
  await connected({ hub });
  for (const number of range(1, 12)) await publish(url, `value:z${number}`, number);
  await publish(url, "value:z0", 1); // a poll tells with what comes
  await until(() => told.at(-1) === 2, "what is left out");
  symbols = ["z0"];
  hub.close();
  hub.open();
  await publish(url, "value:z0", 2);
  await until(() => told.at(-1) === 0, "that nothing is");
  hub.close();
}

/** A fresh token that allows less: the page hears how often values come from now on. */
async function slowed(url, secret) {
  const tokens = [mint(secret, 5), mint(secret, 60, { max_hz: 2 })];
  const hub = new Hub({ url, wires: ["websocket"], token: () => tokens.shift() });
  const told = [];
  hub.subscribe("value:a").on("rate", (hz) => told.push(hz));
  hub.on("notice", (data) => assert.fail(JSON.stringify(data)));
  hub.open();
  await until(() => told.length, "the rate");
  assert.deepEqual(told, [2]);
  hub.close();
}

/** Opens and closes leave nothing behind: no socket, timer or request, and no memory that grows with them. */
async function cycles(url, wire) {
  const hub = new Hub({ url, wires: [wire] });
  hub.subscribe("log:a");
  const cycle = async () => {
    const opened = new Promise((resolve) => {
      const off = hub.on("state", ({ name }) => name === "connected" && resolve(off()));
    });
    hub.open();
    await opened;
    hub.close();
  };
  const measure = async () => {
    // Of fetch's own sockets some are kept alive for the next request: not more than a few.
    await until(() => process.getActiveResourcesInfo().filter((name) => name.startsWith("TCP")).length <= 5, "the end of sockets");
    let bytes = Infinity; // the least of some, as what was used last is let go of in its own time
    for (let i = 0; i < 5; i += 1) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      gc();
      bytes = Math.min(bytes, process.memoryUsage().heapUsed);
    }
    return { bytes, timers: process.getActiveResourcesInfo().filter((name) => name === "Timeout").length };
  };
  for (let i = 0; i < CYCLES / 2; i += 1) await cycle();
  const before = await measure();
  for (let i = 0; i < CYCLES; i += 1) await cycle();
  const after = await measure();
  assert.ok(after.timers <= before.timers + 2, JSON.stringify([before, after]));
  assert.ok(after.bytes - before.bytes < CYCLES * 1000, JSON.stringify([before, after]));
}

// In Chromium. The page is the demo's.

async function browse(url, scenario) {
  const { chromium } = await import("playwright-core"); // here, as its own memory would hide what `cycles` looks for
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
  try {
    const context = await browser.newContext();
    const page = await context.newPage();
    page.setDefaultTimeout(DEADLINE_MS);
    await page.goto(url);
    await scenario(page, context);
  } finally {
    await browser.close();
  }
}

/** Follow CHANNELS in the page; what comes stands in `seen`. */
async function listen(page, options = {}) {
  await page.evaluate(async ([channels, options]) => {
    const { Hub } = await import("/hub.js");
    globalThis.seen = { states: [], lost: 0, channels: {} };
    globalThis.hub = new Hub(options);
    hub.on("state", (state) => seen.states.push(state));
    for (const channel of channels) {
      const all = (seen.channels[channel] = []);
      const subscription = hub.subscribe(channel);
      subscription.on("publication", ({ data }) => all.push(data));
      subscription.on("lost", () => (seen.lost += 1));
    }
    hub.open();
  }, [CHANNELS, options]);
  await page.waitForFunction((channels) => channels.every((one) => hub.subscribe(one).position), CHANNELS);
}

/** The demo page lives on each wire, and finds one by itself where WebSockets are blocked. */
async function demo(url) {
  const moves = async (page) => {
    const text = () => page.textContent("[data-symbol=ACME] [data-column=price]");
    await page.waitForSelector("body[data-state=connected]");
    await until(async () => /\d/.test(await text()), "a price");
    const before = await text();
    await until(async () => (await text()) !== before, "another price");
  };
  for (const [wire, word] of [["sse", "event stream"], ["poll", "polls"]]) {
    await browse(`${url}/?wire=${wire}`, async (page) => {
      await moves(page);
      assert.ok((await page.textContent("#detail")).includes(word));
    });
  }
  const gate = await proxy(url, isUpgrade);
  await browse(gate.url, async (page) => {
    await moves(page);
    assert.ok((await page.textContent("#detail")).includes("event stream"));
  });
  gate.end();
}

/** Offline and online again: nothing is lost, what was written meanwhile goes out, and the page is back at once. */
async function offline(url, wire) {
  await browse(url, async (page, context) => {
    await listen(page, { wires: [wire] });
    for (let number = 0; number < 20; number += 1) await publish(url, CHANNELS[number % 2], number);
    await context.setOffline(true);
    await page.waitForFunction(() => !navigator.onLine);
    // At once, and not by the silence of the hub: what is written now waits, over WebSocket as well.
    await page.waitForFunction(() => hub.state.name === "waiting"); // perhaps because a request of ours had failed before
    await page.evaluate(() => void (globalThis.written = Promise.all([0, 1, 2].map((number) => hub.publish("log:written", number)))));
    for (let number = 20; number < 40; number += 1) await publish(url, CHANNELS[number % 2], number);
    await context.setOffline(false);
    await page.waitForFunction((channels) => channels.every((one) => seen.channels[one].length >= 20), CHANNELS);
    await page.evaluate(() => written);
    const seen = await page.evaluate(() => seen);
    checkNumbers(seen, 40);
    assert.ok(seen.states.filter(({ name }) => name === "connected").length >= 2, "it went on with the old connection");
    await page.evaluate(() => hub.publish("log:a", 40));
    await page.waitForFunction(() => seen.channels["log:a"].includes(40));
  });
}

/** A page that is frozen misses nothing, and one that wakes up looks at once whether its connection has died meanwhile. */
async function hidden(url, wire) {
  await browse(url, async (page, context) => {
    await listen(page, { wires: [wire] });
    const devtools = await context.newCDPSession(page);
    for (let number = 0; number < 20; number += 1) await publish(url, CHANNELS[number % 2], number);
    await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
    for (let number = 20; number < 40; number += 1) await publish(url, CHANNELS[number % 2], number);
    await devtools.send("Page.setWebLifecycleState", { state: "active" });
    await page.waitForFunction((channels) => channels.every((one) => seen.channels[one].length >= 20), CHANNELS);
    const states = await page.evaluate(() => {
      const [before, now] = [seen.states.length, Date.now];
      Date.now = () => now() + 3_600_000; // an hour's sleep, in which the clock of performance stood still
      document.dispatchEvent(new Event("visibilitychange"));
      Date.now = now;
      return seen.states.slice(before);
    });
    assert.deepEqual(states.map(({ name, reason }) => [name, reason]), [["waiting", "the hub fell silent"]]);
    for (let number = 40; number < 60; number += 1) await publish(url, CHANNELS[number % 2], number);
    await page.waitForFunction((channels) => channels.every((one) => seen.channels[one].length >= 30), CHANNELS);
    checkNumbers(await page.evaluate(() => seen), 60);
  });
}

/** As `survives`, in a page. */
async function survivesInPage(url, wire, pids) {
  await browse(url, async (page) => {
    await listen(page, { wires: [wire] });
    for (let number = 0; number < 60; number += 1) {
      if (number === 30) for (const pid of pids.split(",")) process.kill(Number(pid), "SIGKILL");
      await publish(url, CHANNELS[number % 2], number);
    }
    await page.waitForFunction((channels) => channels.every((one) => seen.channels[one].length >= 30), CHANNELS);
    checkNumbers(await page.evaluate(() => seen), 60);
  });
}

/** As `cycles`, in a page: no listener of the browser's, and no memory that grows. */
async function cyclesInPage(url, wire) {
  await browse(url, async (page, context) => {
    await page.goto(`${url}/static/favicon.svg`); // no client of its own
    const devtools = await context.newCDPSession(page);
    await devtools.send("Performance.enable");
    const measure = async () => {
      await devtools.send("HeapProfiler.collectGarbage");
      const { metrics } = await devtools.send("Performance.getMetrics");
      return Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
    };
    const run = (count) => page.evaluate(async ([wire, count]) => {
      const { Hub } = await import("/hub.js");
      globalThis.hub ??= new Hub({ wires: [wire] });
      hub.subscribe("log:a");
      for (let i = 0; i < count; i += 1) {
        await new Promise((resolve) => {
          const off = hub.on("state", ({ name }) => name === "connected" && resolve(off()));
          hub.open();
        });
        hub.close();
      }
    }, [wire, count]);
    await run(CYCLES / 10);
    const before = await measure();
    await run(CYCLES);
    // Sockets close in their own time.
    await until(async () => (await measure()).JSEventListeners <= before.JSEventListeners, "the end of all listeners");
    const after = await measure();
    assert.ok(after.JSHeapUsedSize - before.JSHeapUsedSize < CYCLES * 1000, JSON.stringify([before, after]));
  });
}

const SCENARIOS = {
  keys, talks, survives, changes, fallsBack, queues, refreshes, expired, watches, asks, lists, grants, leftOut, slowed, cycles, demo,
  offline, hidden, survivesInPage, cyclesInPage,
};

const [scenario, url, ...rest] = process.argv.slice(2);
try {
  await SCENARIOS[scenario](url.replace(/\/$/, ""), ...rest);
} catch (error) {
  for (const seen of CLIENTS) console.error(JSON.stringify(seen));
  throw error;
}
process.exit(0);
