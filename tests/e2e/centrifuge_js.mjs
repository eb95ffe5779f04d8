/* The stock JavaScript SDK (npm `centrifuge`) against a hub: one scenario for each test of test_centrifuge_js.py.

   Run: node centrifuge_js.mjs SCENARIO URL [ARGUMENT…]; exit status 0, or 1 with what was not so on standard error.
   Never break: nothing here knows more of the hub than its URL, channels and tokens, and each wait is bounded.
*/

import assert from "node:assert/strict";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";

const DEADLINE_MS = 20_000;

/** A client, not connected yet; the SDK waits at most a second between its attempts. */
const make = (options = {}) => new Centrifuge(url, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 1000, ...options });

/** The context of the next event called `name`, for which `accept` holds. */
function next(emitter, name, accept = () => true) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no '${name}' within ${DEADLINE_MS} ms`)), DEADLINE_MS);
    emitter.on(name, function listen(context) {
      if (!accept(context)) return;
      clearTimeout(timer);
      emitter.removeListener(name, listen);
      resolve(context);
    });
  });
}

async function connect(options) {
  const client = make(options);
  const connected = next(client, "connected");
  client.connect();
  await connected;
  return client;
}

async function subscribe(client, channel) {
  const subscription = client.newSubscription(channel);
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

const SCENARIOS = { receives, isRefused, isTurnedAway, renews, comesBack };

const [scenario, url, ...rest] = process.argv.slice(2);
for (const client of await SCENARIOS[scenario](...rest)) client.disconnect();
