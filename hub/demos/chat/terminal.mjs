#!/usr/bin/env node
/* The chat in a terminal: stock socket.io-client, and nothing of ours.

   Does: the same rooms and direct messages as the page, as a Socket.IO program of anybody's would.
   Does not: keep anything. It listens to chat:v1, as a client that has not been touched for a year; --v2 is a newer one.
   Never break: what it prints has no control characters of others in it, which a terminal would obey.
*/

import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

const USAGE = `usage: node terminal.mjs NAME [--url URL] [--room ROOM] [--polling] [--v2]

  NAME        who you are; this is a demo, so nobody asks for a password
  --url       of the hub                      http://127.0.0.1:8000
  --room      to be in first                  lobby
  --polling   no WebSocket
  --v2        understand chat:v2 instead of chat:v1: with the time

Needs the package socket.io-client where you are: npm install socket.io-client

Once in:  TEXT says it in the room     /direct NAME TEXT     /join ROOM     /who     /quit`;
const PAST = 20;
const ANSWER_MS = 8_000;
const SHOWN = 10_000;
const REFRESH_MS = 60_000;

const fail = (text) => {
  console.error(text);
  process.exit(2);
};

/** What was asked for, or the end. */
function options() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { url: { type: "string", default: "http://127.0.0.1:8000" }, room: { type: "string", default: "lobby" },
        polling: { type: "boolean" }, v2: { type: "boolean" }, help: { type: "boolean", short: "h" } },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    if (positionals.length !== 1) throw new Error("allowed is one NAME");
    return { ...values, name: positionals[0] };
  } catch (error) {
    return fail(`${error.message}\n\n${USAGE}`);
  }
}

function library() {
  try {
    return createRequire(join(process.cwd(), "here"))("socket.io-client");
  } catch {
    return fail("no socket.io-client here: npm install socket.io-client");
  }
}

const asked = options();
const { io } = library();
const version = asked.v2 ? "chat:v2" : "chat:v1";
let me = asked.name;
let room = "";
/** Ids that have been shown: what comes twice is shown once. */
const shown = new Set();
/** By channel: where to go on after a lost connection, and the place after that. */
const places = new Map();

/** A line of somebody else's can't pass for another one. */
const print = (text) => console.log(String(text).replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g, "?").replaceAll("\n", "\n    "));
const newId = () => randomBytes(12).toString("hex");

const socket = io(asked.url, { auth: { name: asked.name }, ...(asked.polling && { transports: ["polling"] }) });

/** An event with an ack; throws what the hub has against it. */
async function ask(event, data) {
  const reply = await socket.timeout(ANSWER_MS).emitWithAck(event, data);
  if (reply.error) throw new Error(reply.error.message);
  return reply;
}

/** Once for each id. */
function isNew(id) {
  if (shown.has(id)) return false;
  if (shown.add(id).size > SHOWN) shown.delete(shown.values().next().value);
  return true;
}

const SHOW = {
  [version]: ({ id, room, user, text, at }) => isNew(id) && print(`${at ? `${new Date(at).toLocaleTimeString()} ` : ""}#${room} ${user}: ${text}`),
  "direct:v1": ({ id, from, to, text }) => isNew(id) && print(from === me ? `to ${to}: ${text}` : `${from} to you: ${text}`),
  "notice:v1": ({ id, room, from, text }) => isNew(`notice ${id}`) && print(`${from} mentioned you in #${room}: ${text}`),
  "mark:v1": ({ by, state, ids }) => by !== me && isNew(`${state} ${ids}`) && print(`${by} has ${state === "read" ? "read" : "got"} it`),
};

/** Be in a channel, or go on in it where the connection was lost. */
async function enter(channel, past = false) {
  const since = places.get(channel)?.since;
  const joined = await ask("subscribe", { channel, ...(since && { recover: true, ...since }) });
  if (joined.positioned) places.set(channel, { since: { epoch: joined.epoch, offset: joined.offset }, next: null });
  let missed = joined.publications ?? [];
  if (past && !since) missed = (await ask("history", { channel, limit: 2 * PAST, reverse: true })).publications.reverse();
  for (const { data, tags } of missed) SHOW[tags?.event]?.(data);
  if (joined.was_recovering && !joined.recovered) print(`some messages of ${channel} are missing`);
}

/** Events say no offset, so where we are is asked for now and then. What was published before an answer may come behind
    it, so it is gone on from only when the next answer has come. */
async function refresh() {
  for (const [channel, place] of places) {
    const { epoch, offset } = await ask("history", { channel, limit: 0 });
    place.since = place.next ?? place.since;
    place.next = { epoch, offset };
  }
}

async function change(name) {
  if (room) await ask("unsubscribe", { channel: `chat:${room}` });
  places.delete(`chat:${room}`);
  room = name;
  await enter(`chat:${room}`, true);
  print(`you are in #${room}`);
}

for (const [event, show] of Object.entries(SHOW)) socket.on(event, show);

// The mailbox keeps it until it is acknowledged, and its sender is told.
socket.on("publication", async ({ channel, data, tags }) => {
  if (!channel.startsWith("inbox:") || !data?.event) return;
  SHOW[data.event]?.(data);
  try {
    if (data.event === "direct:v1") await ask("mark", { to: data.from, ids: [data.id], state: "delivered" });
    await ask("rpc", { method: "hub.ack", data: { channel, ids: [tags.id] } });
  } catch {
    // Then it comes again, and is known by its id.
  }
});
// The hub has lost its place in a channel: go on where we were.
socket.on("unsubscribed", ({ channel }) => enter(channel).catch((error) => print(error.message)));
socket.on("connect", async () => {
  try {
    ({ user: me } = await ask("login", {}));
    await enter(`me:#${me}`);
    await enter(`inbox:#${me}`);
    await (room ? enter(`chat:${room}`) : change(asked.room));
  } catch (error) {
    print(error.message);
  }
});
socket.on("disconnect", (reason) => print(`disconnected: ${reason}`));
socket.on("connect_error", (error) => {
  if (!socket.active) fail(error.message);
});

/** What was lost with the connection, answer or message, is asked for again under its id. */
async function send(event, data) {
  for (let left = 5; ; left -= 1) {
    try {
      return await ask(event, data);
    } catch (error) {
      if (!/timed out|disconnected/.test(error.message) || !left) throw error;
    }
  }
}

const COMMANDS = {
  direct: ([to, ...words]) => send("direct", { id: newId(), to, text: words.join(" ") }),
  join: ([name]) => change(name),
  who: async () => {
    const { presence } = await ask("presence", { channel: `chat:${room}` });
    print(`here: ${[...new Set(Object.values(presence).map(({ user }) => user))].sort().join(", ")}`);
  },
  quit: () => end(),
};

async function obey(line) {
  const [word, ...rest] = line.trim().split(/\s+/);
  try {
    if (word.startsWith("/")) await (COMMANDS[word.slice(1)] ?? (() => console.log(USAGE)))(rest);
    else if (word) await send("say", { id: newId(), room, text: line.trim() });
  } catch (error) {
    print(error.message);
  }
}

const timer = setInterval(() => socket.connected && refresh().catch(() => {}), REFRESH_MS); // else in a minute

/** Lines one after the other, also where they come all at once. */
let turn = Promise.resolve();
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => (turn = turn.then(() => obey(line))));
lines.on("close", () => (turn = turn.then(end)));

function end() {
  clearInterval(timer);
  socket.disconnect();
  lines.close();
}
