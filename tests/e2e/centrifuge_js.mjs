/* The stock JavaScript SDK (npm `centrifuge`) against a hub: one scenario for each test of test_centrifuge_js.py.

   Run: node centrifuge_js.mjs SCENARIO URL [ARGUMENT…]; exit status 0, or 1 with what was not so on standard error.
   Never break: nothing here knows more of the hub than its URL, channels and tokens, and each wait is bounded.
*/

import assert from "node:assert/strict";
import { Centrifuge } from "centrifuge";
import { next } from "./events.mjs";
import { Socket } from "./socket.mjs";


/** A client, not connected yet; the SDK waits at most a second between its attempts. */
const make = (options = {}) => new Centrifuge(url, { websocket: Socket, minReconnectDelay: 50, maxReconnectDelay: 1000, ...options });

async function connect(options) {
  const client = make(options);
  const connected = next(client, "connected");
  client.connect();
  await connected;
  return client;
}

async function subscribe(client, channel, options = {}) {
  const subscription = client.newSubscription(channel, options);
  const subscribed = next(subscription, "subscribed");
  subscription.subscribe();
  await subscribed;
  return subscription;
}

/** The code with which a promise of the SDK is rejected; 0 where it isn't. */
const codeOf = (promise) => promise.then(() => 0, (error) => error.code);

// The scenarios.

async function receives(token) {
  const [ann, reader] = [await connect({ token }), await connect({ token: "" })];
  const ticker = await subscribe(reader, "ticker:ACME");
  const first = await next(ticker, "publication");
  const second = await next(ticker, "publication");
  assert.equal(first.data.symbol, "ACME");
  assert.equal(second.data.seq, first.data.seq + 1);
  assert.match(first.data.time_ns, /^\d{19}$/);

  const chat = await subscribe(reader, "chat:room");
  const heard = next(chat, "publication");
  await ann.publish("chat:room", { text: "grüß dich\n🙂" });
  const { data, info } = await heard;
  assert.deepEqual(data, { text: "grüß dich\n🙂" });
  assert.equal(info.user, "ann");

  const own = await subscribe(ann, "members:room");
  const echo = next(own, "publication");
  await own.publish([1, null, "two"]);
  assert.deepEqual((await echo).data, [1, null, "two"]);
  assert.match((await ann.rpc("hub.time", null)).data.time_ns, /^\d{19}$/);
  return [ann, reader];
}

/** Channel → the code with which the SDK gives the subscription up. */
const REFUSED = { "nowhere:x": 102, "members:room": 103, "bad channel": 107 };

async function isRefused() {
  const client = await connect();
  for (const [channel, code] of Object.entries(REFUSED)) {
    const subscription = client.newSubscription(channel);
    const gone = next(subscription, "unsubscribed");
    subscription.subscribe();
    assert.equal((await gone).code, code, channel);
  }
  assert.equal(await codeOf(client.publish("ticker:ACME", { price: 1 })), 103);
  assert.equal(await codeOf(client.publish("nowhere:x", {})), 102);
  assert.equal(await codeOf(client.rpc("no.such", {})), 104);
  assert.equal(await codeOf(client.history("chat:room", { limit: 1 })), 108);
  assert.equal(await codeOf(client.presence("chat:room")), 108);
  assert.equal(await codeOf(client.presenceStats("chat:room")), 108);
  assert.equal(client.state, "connected");
  return [client];
}

async function isTurnedAway() {
  const client = make({ token: "not.a.token" });
  const gone = next(client, "disconnected");
  client.connect();
  assert.equal((await gone).code, 3500);
  return [client];
}

/** The hub's answer to an ended token is 109, on which the SDK asks the application for another. */
async function renews(ended, token) {
  let asked = 0;
  const getToken = () => Promise.resolve((asked += 1) && token);
  const client = await connect({ token: ended, getToken });
  assert.equal(asked, 1);
  await subscribe(client, "members:room");
  return [client];
}

/** Channel tokens: one that ends is renewed in place; where none comes the subscription ends, and begins anew with one. */
async function renewsItsChannel(token, tokensOfA, tokensOfB) {
  const client = await connect({ token });
  const [a, b] = [tokensOfA.split(","), tokensOfB.split(",")];
  const renewed = await subscribe(client, "tokens:a", { getToken: async () => a.shift() });
  const lost = [];
  renewed.on("subscribing", ({ code }) => lost.push(code));
  const getToken = async () => {
    const text = b.shift();
    if (text === "none") throw new Error("not now");
    return text;
  };
  const lapsed = client.newSubscription("tokens:b", { getToken, minResubscribeDelay: 50, maxResubscribeDelay: 100 });
  lapsed.on("error", () => {});
  lapsed.subscribe();
  assert.equal((await next(lapsed, "subscribing", ({ code }) => code >= 2500)).code, 2501);
  await next(lapsed, "subscribed");
  assert.deepEqual([a, b, lost], [[], [], []]);
  return [client];
}

/** What the server API does to connections, as the SDK sees it: codes, and whether it comes back. */
async function isControlled(ann, bob, apiUrl, key) {
  const api = async (method, params) => {
    const headers = { "X-API-Key": key };
    const answer = await fetch(`${apiUrl}/${method}`, { method: "POST", headers, body: JSON.stringify(params) });
    const { result, error } = await answer.json();
    assert.equal(error, undefined, JSON.stringify(error));
    return result;
  };
  const [client, other] = [await connect({ token: ann }), await connect({ token: bob })];
  const subscription = await subscribe(client, "chat:room");

  const subscribed = next(client, "subscribed");
  assert.equal((await api("subscribe", { user: "ann", channel: "chat:more" })).num_clients, 1);
  assert.equal((await subscribed).channel, "chat:more");

  const unsubscribed = next(subscription, "unsubscribed");
  assert.equal((await api("unsubscribe", { user: "ann", channel: "chat:room" })).num_clients, 1);
  assert.equal((await unsubscribed).code, 2000);

  const again = next(client, "connecting");
  const back = next(client, "connected");
  assert.equal((await api("disconnect", { user: "ann", code: 3011, reason: "move" })).num_clients, 1);
  assert.equal((await again).code, 3011);
  await back;

  const renewed = next(client, "connecting");
  const here = next(client, "connected");
  assert.equal((await api("refresh", { user: "ann", expired: true })).num_clients, 1);
  assert.equal((await renewed).code, 3005);
  await here;

  const blocked = next(client, "disconnected");
  const begin = performance.now();
  assert.equal((await api("block_user", { user: "ann" })).num_clients, 1);
  assert.equal((await blocked).code, 3507);
  assert.ok(performance.now() - begin < 1000);
  assert.equal(other.state, "connected");
  return [client, other];
}

/** Somebody who is kept out does not come back by itself. */
async function isKeptOut(token) {
  const client = make({ token });
  const gone = next(client, "disconnected");
  client.connect();
  assert.equal((await gone).code, 3507);
  return [client];
}

/** Told when its token ends, the SDK asks for another by itself, and stays connected as long as it gets one. */
async function refreshes(token, fresh, endsInMs) {
  let asked = 0;
  const client = await connect({ token, getToken: () => Promise.resolve((asked += 1) && fresh) });
  client.on("connecting", ({ code, reason }) => assert.fail(`left: ${code} ${reason}`));
  const chat = await subscribe(client, "members:room");
  // Until whoever had not refreshed would have been closed: nothing else can be seen of it.
  await new Promise((resolve) => setTimeout(resolve, Number(endsInMs)));
  assert.equal(asked, 1);
  const heard = next(chat, "publication");
  await client.publish("members:room", "still here");
  assert.equal((await heard).data, "still here");
  return [client];
}

/** A token that is not the same user's: the hub ends the connection, and the SDK stays away. */
async function refreshesAsAnother(token, other) {
  const client = await connect({ token, getToken: () => Promise.resolve(other) });
  const { code } = await next(client, "disconnected");
  assert.equal(code, 3500);
  return [client];
}

async function comesBack(token, workers) {
  const client = await connect({ token });
  const ticker = await subscribe(client, "ticker:ACME");
  const chat = await subscribe(client, "chat:room");
  const [lost, back, again] = [next(client, "connecting"), next(client, "connected"), next(chat, "subscribed")];
  for (const pid of workers.split(",")) process.kill(Number(pid), "SIGKILL");
  await Promise.all([lost, back, again]);
  const heard = next(chat, "publication");
  await client.publish("chat:room", "back");
  assert.equal((await heard).data, "back");
  await next(ticker, "publication");
  return [client];
}

/** A watch list: its rate, symbols and patterns change live, and hold when the workers are killed; all by what the SDK has. */
async function watches(token, workers) {
  const client = await connect({ token });
  const list = client.newSubscription("ticker:$watch", { data: { symbols: ["ACME"], marks: true, fields: ["symbol", "price", "seq"] } });
  const newest = {};
  list.on("publication", ({ data, tags }) => {
    const before = newest[data.symbol];
    // Merged values and gaps make up for what is not there; never an older one behind a newer one.
    if (before && !tags.repeat) assert.equal(data.seq - before, 1 + Number(tags.merged) + Number(tags.gap ?? 0), JSON.stringify(tags));
    assert.equal(tags.channel, `ticker:${data.symbol}`);
    assert.deepEqual(Object.keys(data), ["price", "seq", "symbol"]);
    newest[data.symbol] = data.seq;
  });
  const inside = next(list, "subscribed");
  list.subscribe();
  assert.deepEqual((await inside).data, { mode: "merge", fields: ["price", "seq", "symbol"], marks: true });
  assert.deepEqual((await client.rpc("hub.watch", { channel: "ticker:$watch", add: ["AP*"] })).data, { symbols: 2 });
  await next(list, "publication", ({ data }) => data.symbol === "APEX");
  assert.deepEqual((await client.rpc("hub.rate", { channel: "ticker:$watch", hz: 5 })).data, { hz: 5 });
  const merged = await next(list, "publication", ({ tags }) => Number(tags.merged) >= 2);
  assert.match(merged.tags.hub, /^\d{19}$/);
  const [lost, again] = [next(list, "subscribing"), next(list, "subscribed")];
  for (const pid of workers.split(",")) process.kill(Number(pid), "SIGKILL");
  await lost;
  for (const symbol of Object.keys(newest)) delete newest[symbol];
  assert.equal((await again).data.hz, 5);
  for (const symbol of ["ACME", "APEX"]) await next(list, "publication", ({ data }) => data.symbol === symbol);
  return [client];
}

/** Every message of a `stream` channel, through a worker's death and offline time: the application sees each once. */
async function missesNothing(token, workers) {
  const [reader, writer] = [await connect({ token: "" }), await connect({ token })];
  const log = reader.newSubscription("log:room");
  const [got, states] = [[], []];
  log.on("publication", ({ data }) => got.push(data));
  log.on("subscribed", ({ wasRecovering, recovered, recoverable, positioned }) => states.push({ wasRecovering, recovered, recoverable, positioned }));
  const inside = next(log, "subscribed");
  log.subscribe();
  await inside;
  const send = async (number) => {
    for (;;) if ((await codeOf(writer.publish("log:room", number))) === 0) return;
  };
  for (let number = 0; number < 5; number++) await send(number);
  reader.disconnect();
  for (let number = 5; number < 10; number++) await send(number);
  const back = next(log, "subscribed");
  reader.connect();
  await back;
  const again = next(log, "subscribed");
  for (const pid of workers.split(",")) process.kill(Number(pid), "SIGKILL");
  for (let number = 10; number < 15; number++) await send(number);
  await again;
  const last = got.includes(15) ? null : next(log, "publication", ({ data }) => data === 15);
  await send(15);
  await last;
  const page = await log.history({ limit: 3, reverse: true });
  assert.deepEqual(page.publications.map(({ data }) => data), [15, 14, 13]);
  // A message whose publisher's connection died may have been sent twice; the reader's own stream has no gap.
  assert.deepEqual([...new Set(got)], Array.from({ length: 16 }, (_, number) => number));
  assert.deepEqual(states[0], { wasRecovering: false, recovered: false, recoverable: true, positioned: true });
  for (const state of states.slice(1)) assert.deepEqual(state, { wasRecovering: true, recovered: true, recoverable: true, positioned: true });
  return [reader, writer];
}

/** The store has forgotten everything: the application is told, once, and goes on. */
async function isToldOfLoss() {
  const client = await connect();
  const log = await subscribe(client, "log:lost");
  await client.publish("log:lost", 1);
  const [gone, back] = [next(log, "subscribing", ({ code }) => code === 2500), next(log, "subscribed")];
  console.log("ready");
  await gone;
  const { wasRecovering, recovered } = await back;
  assert.deepEqual({ wasRecovering, recovered }, { wasRecovering: true, recovered: false });
  const heard = next(log, "publication");
  await client.publish("log:lost", 2);
  assert.equal((await heard).data, 2);
  return [client];
}

/** Who is in a room, by its members and by those who watch; a connection that is lost and back is not told. */
async function seesOthers(annToken, bobToken) {
  const [ann, watcher] = [await connect({ token: annToken }), await connect({ token: bobToken })];
  const seat = await subscribe(ann, "room:a");
  while ((await seat.presenceStats()).numClients < 1); // its own join is over
  const watch = watcher.newSubscription("room:a", { joinLeave: true });
  const told = [];
  for (const kind of ["join", "leave"]) watch.on(kind, ({ info }) => told.push([kind, info.user]));
  const own = next(watch, "join", ({ info }) => info.user === "bob");
  watch.subscribe();
  await own;

  const { clients } = await watch.presence();
  assert.deepEqual(Object.values(clients).map(({ user }) => user).sort(), ["ann", "bob"]);
  for (const [id, { client }] of Object.entries(clients)) assert.equal(id, client);
  assert.deepEqual(await watch.presenceStats(), { numClients: 2, numUsers: 2 });
  assert.deepEqual(await ann.presenceStats("room:a"), { numClients: 2, numUsers: 2 });
  assert.deepEqual((await ann.presence("room:empty")).clients, {});

  const back = next(seat, "subscribed");
  ann.disconnect();
  // Only what is known to be lost can be found back: on another worker the new connection may come first.
  while ((await watch.presenceStats()).numClients > 1);
  ann.connect();
  await back;
  const gone = next(watch, "leave");
  seat.unsubscribe();
  assert.equal((await gone).info.user, "ann");
  assert.deepEqual(told.filter(([, user]) => user === "ann"), [["leave", "ann"]]);
  assert.deepEqual(await watch.presenceStats(), { numClients: 1, numUsers: 1 });
  return [ann, watcher];
}

/** Tell a user by the server API; the message's id. */
async function notify(api, key, request) {
  const response = await fetch(`${api}/notify`, { method: "POST", headers: { "X-API-Key": key }, body: JSON.stringify(request) });
  return (await response.json()).result.id;
}

async function hasAMailbox(token, api, key) {
  const channel = "inbox:#jo";
  const kept = await notify(api, key, { user: "jo", data: "kept" });
  const [phone, watch] = [await connect({ token }), await connect({ token })];
  const subscription = phone.newSubscription(channel);
  const first = next(subscription, "publication");
  subscription.subscribe();
  const { data, tags } = await first;
  assert.deepEqual([data, tags], ["kept", { id: kept, deliveries: "1" }]);
  assert.deepEqual((await phone.rpc("hub.ack", { channel, ids: [kept] })).data, { acked: 1 });
  assert.deepEqual((await phone.rpc("hub.ack", { channel, upto: kept })).data, { acked: 0 });

  const [live, told] = [next(subscription, "publication"), next(watch, "message")];
  const id = await notify(api, key, { user: "jo", data: { n: 2 } });
  assert.equal((await live).tags.id, id);
  assert.deepEqual((await told).data, { n: 2 });
  assert.deepEqual((await phone.rpc("hub.ack", { channel, upto: id })).data, { acked: 1 });

  assert.equal(await codeOf(phone.rpc("hub.ack", { channel: "inbox:#ann", ids: [id] })), 103);
  assert.equal(await codeOf(phone.rpc("hub.ack", { channel: "chat:room", ids: [id] })), 108);
  assert.equal(await codeOf(phone.rpc("hub.ack", { channel, ids: ["x"] })), 107);
  return [phone, watch];
}

/** The application lets the client into a room and out of it; the SDK knows it as a server-side subscription. */
async function isLetIntoRooms(token) {
  const [client, other] = [await connect({ token }), await connect({ token })];
  const subscribed = next(client, "subscribed");
  await client.rpc("enter", "room:native");
  assert.equal((await subscribed).channel, "room:native");
  const heard = next(client, "publication");
  await other.rpc("say", { room: "room:native", text: "hi" });
  const { channel, data, tags, offset } = await heard;
  assert.deepEqual([channel, data, tags, offset], ["room:native", "hi", { event: "said" }, 1]);
  const unsubscribed = next(client, "unsubscribed");
  await client.rpc("exit", "room:native");
  assert.equal((await unsubscribed).channel, "room:native");
  return [client, other];
}

const SCENARIOS = { watches, isLetIntoRooms, hasAMailbox, receives, seesOthers, isRefused, isTurnedAway, isControlled, isKeptOut, renews, renewsItsChannel, refreshes, refreshesAsAnother, comesBack, missesNothing, isToldOfLoss };

const [scenario, url, ...rest] = process.argv.slice(2);
for (const client of await SCENARIOS[scenario](...rest)) client.disconnect();
