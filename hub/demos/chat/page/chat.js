/* The chat's page: conversations of one user, over a line of which the switch says what wire it takes.

   Does: take what comes to its conversation, send in order and again after a loss, mark what was got and seen, know who is
   here.
   Does not: know wires (line.js), elements (view.js) or how messages of a conversation stand to each other (conversation.js).
   Served by: hub, as `[app] pages` of config/chat.toml; the other half is chat.py, whose head names methods and events.
   Never break: a message is known by its id, whatever way and however often it comes; one that was written is sent until
   the hub has answered, or says on the page why not.
*/

import { Conversation } from "/conversation.js";
import { HubLine, SocketLine, login, whyNoLibrary } from "/line.js";
import * as view from "/view.js";

/** What this page understands; events of other versions are passed over. */
const EVENTS = { "chat:v2": onChat, "direct:v1": onDirect, "mark:v1": onMark, "notice:v1": onNotice };
const FIRST_ROOM = "lobby";
const ROOMS = ["lobby", "help", "random"];
const NAME = /^[a-z0-9][a-z0-9_-]{0,23}$/;
/** Publications of a channel's past: a room has two for each message, one for each version. */
const PAST = 200;
const WAITING = 50;
const AGAIN_MS = 2_000;
/** Typing is told so often, and believed for so long. */
const TYPING_MS = 2_500;
const TYPING_ENDS_MS = 4_000;
/** The same of those who poll, and so are in no presence. */
const HERE_MS = 20_000;
const HERE_ENDS_MS = 45_000;
/** Presence is asked for so often where nobody tells who comes and goes, and where somebody does. */
const ASK_MS = 15_000;
const ASK_SELDOM_MS = 60_000;
const MARKED = 100;

const me = { user: "", token: "" };
let line = null;
let isConnected = false;
let current = null;
/** By key: "#lobby", "@bob". */
const conversations = new Map();
/** What waits to be sent, in order. */
const outbox = [];
let isSending = false;

function conversation(key) {
  let found = conversations.get(key);
  if (!found) conversations.set(key, (found = new Conversation(key, me.user)));
  return found;
}

const isSeen = (one) => one === current && document.visibilityState === "visible";
const randomId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// What comes.

/** A message: onto the page, if it is new. live: it has just been said. */
function take(key, message, live) {
  const one = conversation(key);
  const isNew = one.add(message);
  one.typing.delete(message.user);
  if (one === current) {
    if (!isNew) view.update(one.byId.get(message.id), me.user, retry);
    else if (live) view.append(message, one.messages.at(-2), me.user, retry);
  }
  if (isNew && live && message.user !== me.user && one.isRoom && !isSeen(one)) one.unread += 1;
  return isNew;
}

function onChat({ id, room, user, text, at }, live) {
  if (!conversations.has(`#${room}`)) return; // left meanwhile
  take(`#${room}`, { id, user, text: String(text), at, state: "sent" }, live);
}

function onDirect({ id, from, to, text, at }, live) {
  const peer = from === me.user ? to : from;
  const isNew = take(`@${peer}`, { id, user: from, text: String(text), at, peer, state: "sent" }, live);
  if (live && isNew && from !== me.user) {
    line.visit(); // it is in the mailbox, too
    if (!isSeen(conversation(`@${peer}`))) view.toast(from, text, `@${peer}`, open);
  }
}

/** How far messages have come: of ours at the other's devices, and of the other's at ours. */
function onMark({ by, to, ids, state }) {
  const one = conversation(`@${by === me.user ? to : by}`);
  for (const id of ids) {
    if (one.mark(id, by, state) && one === current) view.update(one.byId.get(id), me.user, retry);
  }
}

const noticed = new Set();
const NOTICED = 1000;

function onNotice({ id, room, from, text }, live) {
  if (!live || noticed.has(id) || from === me.user) return;
  if (noticed.add(id).size > NOTICED) noticed.delete(noticed.values().next().value);
  const key = `#${room}`;
  if (!isSeen(conversations.get(key))) view.toast(`${from} in #${room}`, text, key, open);
}

/** live: false for the past. */
function onEvent({ name, data }, live = true) {
  if (!Object.hasOwn(EVENTS, name) || !data) return;
  EVENTS[name](data, live);
  if (live) settle();
}

/** The mailbox keeps it until we say that we have it. */
async function onMail({ id, data }) {
  const { event, ...words } = data ?? {};
  onEvent({ name: event, data: words });
  try {
    await line.call("hub.ack", { channel: `inbox:#${me.user}`, ids: [id] });
  } catch {
    // It comes again, and is known by its id.
  }
}

function onSign({ channel, user, data }) {
  const one = [...conversations.values()].find(({ signs }) => signs === channel);
  if (!one || !user || user === me.user) return;
  if (data?.typing) one.typing.set(user, Date.now() + TYPING_ENDS_MS);
  if (data?.here) one.people.set(user, Math.max(one.people.get(user) ?? 0, Date.now() + HERE_ENDS_MS));
  refresh();
}

// The past.

/** What was said before, and then go on from exactly there. */
async function load(channel, done) {
  const from = line;
  try {
    const { publications, epoch, offset } = await from.ask("history", { channel, limit: PAST, reverse: true });
    if (from !== line) return; // the switch has been used
    from.enter(channel, { epoch, offset });
    done(publications.reverse().filter(({ tags }) => tags?.event).map(({ tags, data }) => ({ name: tags.event, data })), publications.length === PAST);
    render();
    settle();
  } catch (error) {
    if (from !== line) return;
    if (error.temporary) setTimeout(() => from === line && load(channel, done), AGAIN_MS * (0.5 + Math.random()));
    else view.showState({ name: "closed", text: error.message });
  }
}

function loadRoom(one) {
  load(one.channel, (events, isFull) => {
    const before = one.messages.length;
    const known = events.some(({ data }) => one.byId.has(data.id));
    for (const event of events) onEvent(event, false);
    if (before && isFull && !known) one.gap = one.messages[before]?.id ?? "";
    one.messages.sort((a, b) => a.at - b.at);
  });
}

function loadOwn() {
  load(`me:#${me.user}`, (events) => {
    for (const event of events) onEvent(event, false);
    for (const one of conversations.values()) if (!one.isRoom) one.messages.sort((a, b) => a.at - b.at);
  });
}

function loadAll() {
  loadOwn();
  for (const one of conversations.values()) if (one.isRoom) loadRoom(one);
  if (current) line.enter(current.signs);
}

function onLost({ channel }) {
  line.leave(channel);
  const one = [...conversations.values()].find((each) => each.isRoom && each.channel === channel);
  if (one) loadRoom(one);
  else loadOwn();
}

// What goes.

function send(text) {
  if (outbox.length >= WAITING) {
    view.toast("Not sent", `${WAITING} messages wait already`, "");
    return false;
  }
  const one = current;
  const message = { id: randomId(), user: me.user, text, at: Date.now(), state: "sending", ...(!one.isRoom && { peer: one.name }) };
  one.add(message);
  view.append(message, one.messages.at(-2), me.user, retry);
  outbox.push({ one, message });
  toldAt = 0; // what was told has ended with it
  pump();
  return true;
}

/** A message that was refused, once more. */
function retry(message) {
  message.state = "sending";
  view.update(message, me.user, retry);
  outbox.push({ one: current, message });
  pump();
}

/** In order, each until it has an answer. It may have come back to us before, but the answer says that all of it is done,
    and to ask twice does no harm. */
async function pump() {
  if (isSending || !isConnected || !outbox.length) return;
  isSending = true;
  const [{ one, message }] = outbox;
  const { id, text } = message;
  let after = {};
  let isDone = true;
  try {
    const { at } = await (one.isRoom ? line.call("say", { id, room: one.name, text }) : line.call("direct", { id, to: one.name, text }));
    after = { state: "sent", at };
  } catch (error) {
    isDone = !error.temporary;
    if (isDone) after = { state: "failed", why: error.message };
  }
  if (message.state === "sending") Object.assign(message, after);
  isSending = false;
  if (one === current) view.update(message, me.user, retry);
  if (isDone) {
    outbox.shift();
    pump();
  } else setTimeout(pump, AGAIN_MS * (0.5 + Math.random()));
}

/** Mark what has come, and what is being looked at. */
function settle() {
  for (const one of conversations.values()) {
    if (one.isRoom) continue;
    const want = isSeen(one) ? "read" : "delivered";
    const due = isConnected ? one.unmarked(want) : [];
    if (due.length) mark(one, due.slice(-MARKED), want);
    one.unread = one.unmarked("read").length;
  }
  if (current && isSeen(current)) current.unread = 0;
  refresh();
}

async function mark(one, messages, state) {
  for (const message of messages) message.asked = state;
  try {
    await line.call("mark", { to: one.name, ids: messages.map(({ id }) => id), state });
  } catch (error) {
    for (const message of messages) if (error.temporary && message.asked === state) message.asked = ""; // asked again before long
  }
}

let toldAt = 0;

function typing() {
  if (Date.now() - toldAt < TYPING_MS || !isConnected) return;
  toldAt = Date.now();
  line.sign(current.signs, { typing: true });
}

// Who is here.

async function askPresence(one) {
  try {
    const { presence } = await line.ask("presence", { channel: one.channel });
    const now = Date.now();
    // Those who poll are not in it; what they said of themselves holds for a while.
    const polling = [...one.people].filter(([, until]) => until > now && until < Infinity);
    one.people = new Map([...polling, ...Object.values(presence).map(({ user }) => [user, Infinity])]);
    refresh();
  } catch {
    // Asked again before long.
  }
}

const moved = new Map();

/** Many may come at once, after a restart; that is one question. */
function onMoved({ channel }) {
  clearTimeout(moved.get(channel));
  const one = [...conversations.values()].find((each) => each.isRoom && each.channel === channel);
  if (one) moved.set(channel, setTimeout(() => askPresence(one), 200));
}

let askedAt = 0;
let saidAt = 0;

function everySecond() {
  const now = Date.now();
  if (isConnected && now - askedAt > (line.told ? ASK_SELDOM_MS : ASK_MS)) {
    askedAt = now;
    for (const one of conversations.values()) if (one.isRoom) askPresence(one);
  }
  if (isConnected && !line.counted && now - saidAt > HERE_MS) {
    saidAt = now;
    if (current) line.sign(current.signs, { here: true });
  }
  for (const one of conversations.values()) {
    for (const [user, until] of one.typing) if (until < now) one.typing.delete(user);
    for (const [user, until] of one.people) if (until < now) one.people.delete(user);
  }
  settle();
}

// What is shown.

let drawn = "";

/** Lists and heads, where anything about them has changed. */
function refresh() {
  if (!current) return;
  const all = [...conversations.values()];
  const present = new Set(all.flatMap(({ people }) => [...people.keys()]));
  present.delete(me.user);
  const rooms = all.filter(({ isRoom }) => isRoom);
  const names = new Set([...all.filter(({ isRoom }) => !isRoom).map(({ name }) => name), ...present]);
  const row = (key, label, sign) => ({
    key, label, sign, unread: conversations.get(key)?.unread ?? 0, current: key === current.key, dot: !sign && present.has(label),
  });
  const others = ROOMS.filter((name) => !conversations.has(`#${name}`));
  const shown = {
    rooms: [...rooms.map(({ key, name }) => row(key, name, "#")), ...others.map((name) => row(`#${name}`, name, "+"))],
    people: [...names].sort().map((name) => row(`@${name}`, name, "")),
    title: current.isRoom ? `#${current.name}` : current.name,
    here: current.isRoom ? inWords([...new Set([me.user, ...current.people.keys()])]) : present.has(current.name) ? "Here now" : "Not here; gets it later",
    typing: [...current.typing.keys()],
    unread: all.reduce((sum, { unread }) => sum + unread, 0),
    key: current.key,
  };
  const text = JSON.stringify(shown);
  if (text === drawn) return;
  drawn = text;
  view.showItems(view.byId("rooms"), shown.rooms, open);
  view.showItems(view.byId("people"), shown.people, open);
  view.showHead(shown.title, shown.here, current.isRoom && rooms.length > 1);
  view.showTyping(shown.typing);
  view.showUnread(shown.unread, shown.title);
}

function inWords(users) {
  if (users.length === 1) return "Only you are here";
  const shown = users.slice(0, 4).map((user) => (user === me.user ? "you" : user));
  return `${users.length} here: ${shown.join(", ")}${users.length > 4 ? " and others" : ""}`;
}

/** The whole conversation. */
function render() {
  if (current) view.showLog(current, me.user, retry);
  refresh();
}

function open(key) {
  const isNew = !conversations.has(key);
  const one = conversation(key);
  if (current !== one) {
    if (current) line.leave(current.signs);
    const draft = view.swapDraft(one.draft);
    if (current) current.draft = draft;
    current = one;
    line.enter(one.signs);
    saidAt = toldAt = 0;
  }
  if (isNew && one.isRoom) {
    if (isConnected) loadRoom(one);
    askedAt = 0;
    remember();
  }
  render();
  settle();
  view.dropToasts(key);
  view.drawer(false);
  view.focusField();
}

function leave() {
  line.leave(current.channel);
  conversations.delete(current.key);
  remember();
  open([...conversations.keys()].find((key) => key[0] === "#"));
}

// The line.

const WIRES = ["websocket", "sse", "poll", "socketio"];

function connect(wire) {
  line?.close();
  isConnected = false;
  line = wire === "socketio" ? new SocketLine(me.user, me.token) : new HubLine(me.user, me.token, wire);
  const mine = line;
  let isFirst = true;
  line.on("event", onEvent).on("mail", onMail).on("sign", onSign).on("moved", onMoved).on("lost", onLost);
  line.on("state", (state) => {
    view.showState(state);
    isConnected = state.name === "connected";
    if (!isConnected || mine !== line) return;
    if (isFirst) loadAll();
    isFirst = false;
    askedAt = saidAt = 0;
    line.visit();
    settle();
    pump();
  });
  line.open();
}

/** Of this window only, so that two windows are two people. */
function remember() {
  const rooms = [...conversations.values()].filter(({ isRoom }) => isRoom).map(({ name }) => name);
  sessionStorage.setItem("chat", JSON.stringify({ user: me.user, rooms }));
}

function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem("chat")) ?? {};
  } catch {
    return {};
  }
}

async function start(user, rooms = [FIRST_ROOM]) {
  Object.assign(me, await login(user));
  view.byId("login").hidden = true;
  view.byId("app").hidden = false;
  view.byId("me").textContent = me.user;
  for (const name of rooms) conversation(`#${name}`);
  connect(document.querySelector("[name=wire]:checked").value);
  open(`#${rooms[0]}`);
  remember();
  setInterval(everySecond, 1000);
}

async function chooseWire() {
  const asked = new URLSearchParams(location.search).get("wire");
  const why = await whyNoLibrary();
  const socketio = document.querySelector("[value=socketio]");
  socketio.disabled = Boolean(why);
  view.byId("no-library").textContent = why;
  const wire = WIRES.includes(asked) && !(asked === "socketio" && why) ? asked : "websocket";
  document.querySelector(`[value=${wire}]`).checked = true;
}

view.byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = view.byId("login-problem");
  problem.textContent = "";
  try {
    await start(view.byId("name").value.trim().toLowerCase());
  } catch (error) {
    problem.textContent = error.message;
  }
});

view.byId("go").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = view.byId("where");
  const where = field.value.trim().toLowerCase();
  const name = where.replace(/^[#@]/, "");
  const isGood = NAME.test(name);
  view.byId("go-problem").textContent = isGood ? "" : "Allowed are 1 to 24 letters, digits, _ and -";
  if (!isGood) return;
  field.value = "";
  open(`${where[0] === "@" ? "@" : "#"}${name}`);
});

view.byId("leave").addEventListener("click", leave);
document.querySelector(".switch").addEventListener("change", ({ target }) => connect(target.value));
document.addEventListener("visibilitychange", settle);
view.onWrite(send, typing);
await chooseWire();
const before = remembered();
if (before.user) start(before.user, before.rooms).catch((error) => (view.byId("login-problem").textContent = error.message));
else view.byId("name").focus();
