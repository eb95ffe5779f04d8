/* hub/static/hub.js on a clock of our own, with sockets and answers of our own: one scenario for each test of
   test_hub_js_clock.py.

   Run: node --expose-gc hub_js_clock.mjs SCENARIO; exit status 0, or 1 with what was not so on standard error.
   Never break: no time passes but by `pass`, and no dice are thrown but by `dice`.
*/

import assert from "node:assert/strict";

// The world: timers, dice, the browser's events, sockets and requests.

const timers = new Map();
let [time, asleep, lastTimer, dice] = [0, 0, 0, () => 0.5];
globalThis.setTimeout = (act, ms = 0) => (timers.set(++lastTimer, { act, at: time + ms }), lastTimer);
globalThis.clearTimeout = (id) => timers.delete(id);
globalThis.performance = { now: () => time };
Date.now = () => 1_700_000_000_000 + time + asleep; // goes on while the machine sleeps
Math.random = () => dice();

const world = new EventTarget();
globalThis.addEventListener = world.addEventListener.bind(world);
globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });

/** All that needs no time has happened: answers of the sockets to commands upon answers. */
async function settle() {
  for (let i = 0; i < 8; i += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** Let so many ms pass, timer by timer. */
async function pass(ms) {
  await settle();
  for (const end = time + ms; ; ) {
    const [id, next] = [...timers].sort(([, a], [, b]) => a.at - b.at)[0] ?? [];
    if (!next || next.at > end) {
      time = end;
      return settle();
    }
    timers.delete(id);
    time = Math.max(time, next.at);
    next.act();
    await settle();
  }
}

let sockets = [];
/** Whether the next sockets open; what they answer to each command, by its method. */
let reachable = true;
let answers = {};

globalThis.WebSocket = class {
  sent = [];

  constructor() {
    sockets.push(this);
    setImmediate(() => (reachable ? this.onopen?.() : this.onclose?.({ code: 1006, reason: "" })));
  }

  send(text) {
    for (const line of text.split("\n")) {
      const command = JSON.parse(line);
      this.sent.push(command);
      const method = Object.keys(command).find((name) => name in answers);
      if (method) setImmediate(() => this.tell({ id: command.id, ...answers[method](command[method], this) }));
    }
  }

  /** What comes together is read together: as one text, or as several in one turn. */
  tell(...messages) {
    this.onmessage?.({ data: messages.map((one) => JSON.stringify(one)).join("\n") });
  }

  close() {
    this.closed = true;
  }
};

/** The requests that wait; `answer` answers the oldest. */
const requests = [];
globalThis.fetch = (url, { signal, headers = {}, ...more }) => new Promise((resolve, reject) => {
  const abort = () => {
    if (requests.includes(one)) requests.splice(requests.indexOf(one), 1);
    reject(signal.reason);
  };
  const one = { url: new URL(url), headers, ...more, resolve: (response) => (signal.removeEventListener("abort", abort), resolve(response)) };
  requests.push(one);
  signal.addEventListener("abort", abort);
});

async function answer(status, body, headers = {}) {
  await settle();
  const one = requests.shift();
  assert.ok(one, "no request waits");
  one.resolve(new Response(status === 204 ? null : JSON.stringify(body ?? {}), { status, headers }));
  await settle();
  return one;
}

const CONNECT = () => ({ connect: { client: "c", ping: 25 } });
const { Hub, HubError, cursorKey } = await import("../../hub/static/hub.js");

function client(options = {}) {
  const hub = new Hub({ url: "http://hub.test", wires: ["websocket"], ...options });
  const states = [];
  hub.on("state", (state) => states.push(state));
  return { hub, states };
}

/** An open client over WebSocket, in one channel where it is at offset 1. */
async function follower() {
  answers = { connect: CONNECT, subscribe: () => ({ subscribe: { recoverable: true, positioned: true, epoch: "e", offset: 1 } }) };
  const { hub, states } = client();
  const room = hub.subscribe("log:a");
  const got = [];
  room.on("publication", ({ data }) => got.push(data));
  hub.open();
  await settle();
  await settle();
  assert.deepEqual(room.position, { epoch: "e", offset: 1 });
  return { hub, states, room, got };
}

const push = (offset) => ({ push: { channel: "log:a", pub: { offset, data: offset } } });

// The scenarios.

/** What was missed, and right behind it what came since, in one turn: nothing is passed over. */
async function order() {
  for (const together of [true, false]) {
    const { hub, room, got } = await follower();
    delete answers.subscribe;
    sockets.at(-1).onclose({ code: 1006, reason: "" });
    await pass(1000);
    const socket = sockets.at(-1);
    const { id, subscribe } = socket.sent.find((one) => one.subscribe);
    assert.deepEqual(subscribe, { channel: "log:a", recover: true, epoch: "e", offset: 1 });
    const publications = [2, 3].map((offset) => ({ offset, data: offset }));
    const reply = { id, subscribe: { recoverable: true, positioned: true, was_recovering: true, recovered: true, epoch: "e", offset: 3, publications } };
    if (together) socket.tell(reply, push(4));
    else [reply, push(4)].forEach((one) => socket.tell(one));
    await settle();
    assert.deepEqual(got, [2, 3, 4]);
    assert.deepEqual(room.position, { epoch: "e", offset: 4 });
    hub.close();
  }
}

/** Full jitter up to a doubled bound, which has an end, behind the hub's own hint; a good connection begins anew. */
async function backs() {
  answers = {};
  reachable = false;
  for (const share of [0.01, 0.25, 0.999]) {
    dice = () => share;
    const { hub, states } = client();
    hub.open();
    for (let attempt = 0; attempt < 9; attempt += 1) {
      await pass(0);
      const { name, retryAt } = states.at(-1);
      assert.equal(name, "waiting");
      const most = Math.min(20_000, 500 * 2 ** attempt);
      assert.ok(Math.abs(retryAt - time - share * most) < 1, JSON.stringify([attempt, retryAt - time, share * most]));
      const count = sockets.length;
      await pass(retryAt - time - 1);
      assert.equal(sockets.length, count, "it came too early");
      await pass(1);
      assert.ok(sockets.length > count, "it came too late");
    }
    hub.close();
  }
  // The hint of an answer, on top of the dice.
  dice = () => 0.5;
  const { hub, states } = client({ wires: ["poll"] });
  hub.subscribe("log:a");
  hub.open();
  await answer(503, { error: { code: 100, message: "busy", temporary: true } }, { "Retry-After": "7" });
  assert.equal(states.at(-1).retryAt - time, 7000 + 250);
  // Not even a network that comes back, or a page that is looked at, makes it come before the hint.
  world.dispatchEvent(new Event("online"));
  await pass(6999);
  assert.equal(requests.length, 0);
  await pass(1);
  assert.equal(requests.length, 1);
  // Connected for so long that all is forgotten.
  await answer(204);
  await pass(31_000);
  await answer(503, { error: { code: 100, message: "busy", temporary: true } });
  assert.equal(states.at(-1).retryAt - time, 250);
  hub.close();
  assert.equal(timers.size, 0);
}

/** From polls back to WebSocket, once the hub answers there: more and more rarely tried, and nothing tried at once. */
async function wayBack() {
  reachable = false;
  answers = { connect: CONNECT };
  const { hub, states } = client({ wires: ["websocket", "poll"] });
  hub.subscribe("log:a");
  hub.open();
  await answer(204, null, { "Hub-Cursor": `1~${cursorKey("log:a")}~5~e` });
  assert.equal(hub.state.wire, "poll");
  const looked = [];
  for (let minutes = 0; minutes < 60; minutes += 0.25) {
    const before = sockets.length;
    await pass(15_000);
    if (sockets.length > before) looked.push(minutes);
    if (requests.length) await answer(204);
  }
  assert.equal(hub.state.wire, "poll");
  assert.ok(looked.length >= 4 && looked.length <= 7, JSON.stringify(looked));
  assert.ok(looked.every((at, i) => i < 2 || at - looked[i - 1] > looked[i - 1] - looked[i - 2]), JSON.stringify(looked));
  // One that opens, but over which the hub says nothing, is none to go back to.
  reachable = true;
  answers = {};
  for (let seconds = 0; seconds < 3600 && !sockets.at(-1).sent.length; seconds += 15) {
    await pass(15_000);
    if (requests.length) await answer(204);
  }
  await pass(10_000);
  assert.equal(hub.state.wire, "poll");
  assert.ok(sockets.at(-1).closed);
  answers = { connect: CONNECT };
  for (let hours = 0; hours < 3 && hub.state.wire === "poll"; hours += 0.005) {
    await pass(20_000);
    if (requests.length) await answer(204);
  }
  assert.equal(hub.state.wire, "websocket");
  // It goes on where the polls were.
  assert.deepEqual(sockets.at(-1).sent.at(-1).subscribe, { channel: "log:a", recover: true, epoch: "e", offset: 5 });
  assert.ok(!states.some(({ name }) => name === "waiting"));
  assert.equal(requests.length, 0);
  hub.close();
  await settle();
  assert.equal(timers.size, 0);

  // Who is not to use WebSocket does not look for it.
  const count = sockets.length;
  const poller = client({ wires: ["poll"] });
  poller.hub.subscribe("log:a");
  poller.hub.open();
  for (let seconds = 0; seconds < 600; seconds += 20) {
    await answer(204);
    await pass(20_000);
  }
  assert.equal(poller.hub.state.name, "connected");
  assert.equal(sockets.length, count);
  poller.hub.close();
}

/** A hub that falls silent is left; after a sleep, in which timers and one of the clocks stood still, at once. */
async function sleeps() {
  const first = await follower();
  await pass(34_999);
  assert.equal(first.hub.state.name, "connected");
  await pass(1);
  assert.equal(first.states.findLast(({ name }) => name === "waiting").reason, "the hub fell silent");
  first.hub.close();

  const { hub, states } = await follower();
  const count = sockets.length;
  document.visibilityState = "hidden";
  document.dispatchEvent(new Event("visibilitychange"));
  asleep += 3_600_000;
  await pass(0);
  assert.equal(hub.state.name, "connected");
  document.visibilityState = "visible";
  document.dispatchEvent(new Event("visibilitychange"));
  assert.equal(hub.state.name, "waiting");
  // And one that waits does not wait on, once it is looked at again.
  document.dispatchEvent(new Event("visibilitychange"));
  await settle();
  assert.equal(sockets.length, count + 1);
  assert.equal(states.at(-1).name, "connected");
  hub.close();

  // A page that was hidden, but not for long, goes on with what it has.
  const third = await follower();
  await pass(20_000);
  document.dispatchEvent(new Event("visibilitychange"));
  await pass(0);
  assert.equal(third.hub.state.name, "connected");
  third.hub.close();
}

/** So many publications may wait; one more is refused with an error that says that trying again may help. */
async function bounds() {
  answers = {};
  const { hub } = client({ queue: 3 });
  await assert.rejects(hub.publish("log:a", 0), (error) => error instanceof HubError && !error.temporary);
  hub.open();
  const waiting = [1, 2, 3].map((data) => hub.publish("log:a", data));
  await assert.rejects(hub.publish("log:a", 4), (error) => error instanceof HubError && error.temporary && error.code === 0);
  // Sent in order once it is connected, and there is room again.
  answers = { publish: ({ data }) => ({ publish: { offset: data } }) };
  await settle();
  const { id } = sockets.at(-1).sent[0];
  sockets.at(-1).tell({ id, ...CONNECT() });
  assert.deepEqual(await Promise.all(waiting), [1, 2, 3].map((offset) => ({ offset })));
  assert.deepEqual(await hub.publish("log:a", 5), { offset: 5 });
  hub.close();
}

/** An answer to a poll that is lost on its way is asked for again, from the place of before. */
async function lostAnswer() {
  const { hub } = client({ wires: ["poll"] });
  const room = hub.subscribe("log:a");
  const got = [];
  room.on("publication", ({ data }) => got.push(data));
  hub.open();
  const at = (offset) => `1~${cursorKey("log:a")}~${offset}~e`;
  await answer(204, null, { "Hub-Cursor": at(4) });
  await settle();
  const lost = requests.shift();
  assert.equal(lost.headers["Last-Event-ID"], at(4));
  lost.resolve(new Response(new ReadableStream({ start: (body) => body.error(new TypeError("cut off")) }), { headers: { "Hub-Cursor": at(5) } }));
  await pass(20_000);
  const messages = [{ channel: "log:a", pub: { offset: 5, data: "x" } }];
  const again = await answer(200, { messages }, { "Hub-Cursor": at(5) });
  assert.equal(again.headers["Last-Event-ID"], at(4));
  assert.deepEqual(got, ["x"]);
  assert.deepEqual(room.position, { epoch: "e", offset: 5 });
  hub.close();
}

await { order, backs, wayBack, sleeps, bounds, lostAnswer }[process.argv[2]]();
process.exit(0);
