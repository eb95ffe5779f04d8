/* Lines: one user's connection to the hub, over whichever wire the switch says.

   Does: give chat.js one small interface (Line), with two implementations: HubLine over /hub.js (WebSocket, event streams,
   polls), SocketLine over stock socket.io-client.
   Does not: know rooms, messages or the page (chat.js).
   Never break: whatever a line brings may come twice, after a reconnect; what it can't bring any more it says (`lost`).

   A line tells, by `on`:
     state  {name: "connecting" | "connected" | "waiting" | "closed", text}
     event  {channel, name, data}      of the application's, such as chat:v2; channel is "" where the wire doesn't tell
     sign   {channel, user, data}      that a page has published
     mail   {id, data}                 of this user's mailbox, until it is acknowledged
     moved  {channel}                  somebody came or went: ask for its presence
     lost   {channel}                  something is missing: ask for its history
*/

import { Hub } from "/hub.js";

const LIBRARY = "/socket.io/socket.io.esm.min.js";
const CALL_MS = 8_000;
/** A visit to the mailbox waits so long for what is in it. */
const VISIT_MS = 1_000;
const VISIT_EVERY_MS = 60_000;
/** So many events of a channel, and its position is asked for again. */
const REFRESH = 200;
/** Codes of the hub (hub/errors.py). */
const EXPIRED = 109;
const INVALID_TOKEN = 3500;
const ALREADY_SUBSCRIBED = 105;
const FINAL = 3500;

/** What was asked for was refused, or (temporary) may be asked for again. */
export class CallError extends Error {
  constructor({ message, code = 0, temporary = false }) {
    super(message);
    this.code = code;
    this.temporary = temporary;
  }
}

const unanswered = () => new CallError({ message: "the hub did not answer", temporary: true });

/** Listeners by name, and what both lines say alike. */
class Line {
  #listeners = new Map();

  constructor(user) {
    this.user = user;
  }

  on(name, listener) {
    this.#listeners.set(name, listener);
    return this;
  }

  tell(name, value) {
    if (!this.closed) this.#listeners.get(name)?.(value);
  }

  /** A publication, in the native protocol's words, which both wires have. */
  take(channel, { data, tags, info }) {
    if (channel.startsWith("inbox:")) this.tell("mail", { id: tags?.id, data });
    else if (tags?.event) this.tell("event", { channel, name: tags.event, data });
    else this.tell("sign", { channel, user: info?.user ?? "", data });
  }

  /** A method of chat.py, or `hub.ack`. Rejects with a CallError. */
  async call(method, data) {
    return (await this.ask("rpc", { method, data })).data;
  }
}

/** hub.js reads channels and publishes, and no more. So questions go as requests of their own: commands of the native
    protocol, over an answer that ends with the last one's. */
async function request(commands, { token = "", name, listen = () => {}, lingerMs = 0 } = {}) {
  const aborter = new AbortController();
  const timer = setTimeout(() => aborter.abort(), CALL_MS);
  const connect = name ? { data: { name } } : { token };
  const lines = [{ connect }, ...commands].map((command, i) => JSON.stringify({ id: i + 1, ...command }));
  const results = [];
  try {
    const response = await fetch("/connection/http_stream", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: lines.join("\n"), signal: aborter.signal,
    });
    if (!response.ok) throw new CallError({ message: `HTTP ${response.status}`, temporary: response.status >= 429 });
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    for (let text = "", left = lines.length; left; ) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (text + decoder.decode(value, { stream: true })).split("\n");
      text = parts.pop();
      for (const { id, error, push, ...result } of parts.filter(Boolean).map((part) => JSON.parse(part))) {
        if (error) throw new CallError(error);
        if (push?.disconnect) throw new CallError({ message: push.disconnect.reason, code: push.disconnect.code, temporary: push.disconnect.code < FINAL });
        if (push) listen(push);
        if (!id) continue;
        results[id - 2] = Object.values(result)[0] ?? {};
        // What the last answer is followed by, and then no more.
        if (results.length === commands.length && lingerMs) setTimeout(() => aborter.abort(), lingerMs);
        if (!lingerMs) left -= 1;
      }
    }
  } catch (error) {
    if (error instanceof CallError) throw error;
    if (!lingerMs || results.length < commands.length) throw unanswered();
  } finally {
    clearTimeout(timer);
    aborter.abort();
  }
  if (results.length < commands.length) throw unanswered();
  return results;
}

/** A token for a name: the demo's way in, see `connect` in chat.py. */
export async function login(name) {
  const [{ data }] = await request([{ rpc: { method: "login", data: {} } }], { name });
  return data;
}

/** Whether the hub has the client library for the page; "" or why not. */
export async function whyNoLibrary() {
  try {
    const response = await fetch(LIBRARY, { method: "HEAD" });
    return response.ok ? "" : "The hub has no socket.io-client for this page: set socketio.client_dir.";
  } catch {
    return "The hub is away.";
  }
}

/** WebSocket, event streams or polls, by hub.js. */
export class HubLine extends Line {
  #hub;
  #wire;
  #token;
  #subscriptions = new Map();
  #timer = 0;
  #visiting = false;

  constructor(user, token, wire) {
    super(user);
    this.#wire = wire;
    this.#token = token;
    this.#hub = new Hub({ wires: [wire], token: async () => (this.#token ??= (await login(user)).token) });
    this.#hub.on("state", (state) => this.#show(state));
  }

  /** Polls tell nobody that we are here, so the page has to. */
  get counted() {
    return this.#wire !== "poll";
  }

  /** Whether `moved` comes, and presence needs to be asked for only now and then. */
  get told() {
    return this.#wire === "websocket";
  }

  open() {
    this.#hub.open();
    this.#read(`inbox:#${this.user}`);
  }

  close() {
    this.closed = true;
    clearInterval(this.#timer);
    this.#hub.close();
  }

  /** Be in a channel. since: where to go on, as `history` said; without it from now on. */
  enter(channel, since = null) {
    if (!this.#subscriptions.has(channel)) this.#read(channel, since);
  }

  leave(channel) {
    this.#subscriptions.get(channel)?.unsubscribe();
    this.#subscriptions.delete(channel);
  }

  sign(channel, data) {
    this.#hub.publish(channel, data).catch(() => {}); // it was worth something only now
  }

  async ask(method, params) {
    try {
      this.#token ??= (await login(this.user)).token;
      return (await request([{ [method]: params }], { token: this.#token }))[0];
    } catch (error) {
      if (error.code !== EXPIRED) throw error;
      this.#token = null; // and the next one gets another
      throw new CallError({ message: error.message, code: EXPIRED, temporary: true });
    }
  }

  #show(state) {
    if (state.code === EXPIRED) this.#token = null;
    this.tell("state", { name: state.name, text: state.reason ?? "" });
  }

  #read(channel, since = null) {
    if (channel.startsWith("inbox:") && this.#wire !== "websocket") return this.#visitOften();
    const watch = this.told && channel.startsWith("chat:");
    const subscription = this.#hub.subscribe(channel, { since, joinLeave: watch });
    this.#subscriptions.set(channel, subscription);
    subscription.on("publication", (publication) => this.take(channel, publication));
    subscription.on("lost", () => this.tell("lost", { channel }));
    for (const name of ["join", "leave"]) subscription.on(name, () => this.tell("moved", { channel }));
    subscription.on("error", ({ message }) => this.tell("state", { name: "closed", text: `${channel}: ${message}` }));
  }

  // Event streams and polls bring no mailbox, as it wants answers. So it is looked into now and then, and when `me:#USER`
  // says that there is something (chat.js calls this).

  #visitOften() {
    this.visit();
    this.#timer = setInterval(() => this.visit(), VISIT_EVERY_MS);
  }

  async visit() {
    if (this.#wire === "websocket" || this.#visiting || this.closed) return;
    this.#visiting = true;
    const channel = `inbox:#${this.user}`;
    try {
      const listen = (push) => push.pub && this.take(channel, push.pub);
      await request([{ subscribe: { channel } }], { token: this.#token, listen, lingerMs: VISIT_MS });
    } catch {
      // The next visit finds what is there, in a minute at the latest.
    }
    this.#visiting = false;
  }
}

/** Stock socket.io-client: polling first, and then a WebSocket, as it comes. */
export class SocketLine extends Line {
  counted = true;
  told = true;
  #token;
  #socket = null;
  #timer = 0;
  /** By channel: where it is to go on, {since, next, count}. */
  #channels = new Map();

  constructor(user, token) {
    super(user);
    this.#token = token;
  }

  async open() {
    this.tell("state", { name: "connecting", text: "" });
    try {
      this.#start((await import(LIBRARY)).io);
    } catch (error) {
      this.tell("state", { name: "closed", text: `no client library: ${error.message}` });
    }
  }

  #start(io) {
    if (this.closed) return;
    const socket = (this.#socket = io({ auth: { token: this.#token } }));
    socket.on("connect", () => {
      for (const channel of this.#channels.keys()) this.#read(channel);
      this.tell("state", { name: "connected", text: "" });
    });
    socket.on("disconnect", (reason) => this.#gone(reason));
    socket.on("connect_error", (error) => (socket.active ? this.tell("state", { name: "waiting", text: error.message }) : this.#refused(error)));
    socket.on("publication", ({ channel, ...publication }) => this.take(channel, publication));
    socket.on("unsubscribed", ({ channel }) => this.#read(channel));
    for (const name of ["join", "leave"]) socket.on(name, ({ channel }) => this.tell("moved", { channel }));
    socket.onAny((name, data) => /:v\d+$/.test(name) && this.#event(name, data));
    this.enter(`inbox:#${this.user}`);
  }

  /** The library comes back by itself, unless it was the hub that has ended it. */
  #gone(reason) {
    if (reason === "io server disconnect") this.#timer = setTimeout(() => this.#socket.connect(), 1000 + Math.random() * 2000);
    this.tell("state", { name: "waiting", text: reason });
  }

  async #refused(error) {
    if (![EXPIRED, INVALID_TOKEN].includes(error.data?.code)) return this.tell("state", { name: "closed", text: error.message });
    this.#token = (await login(this.user)).token;
    this.#socket.auth = { token: this.#token };
    this.#socket.connect();
  }

  close() {
    this.closed = true;
    clearTimeout(this.#timer);
    this.#socket?.disconnect();
  }

  enter(channel, since = null) {
    if (this.#channels.has(channel)) return;
    this.#channels.set(channel, { since, next: null, count: 0 });
    if (this.#socket?.connected) this.#read(channel);
  }

  leave(channel) {
    if (this.#channels.delete(channel)) this.ask("unsubscribe", { channel }).catch(() => {}); // out is out
  }

  sign(channel, data) {
    this.#socket?.volatile.emit("publish", { channel, data });
  }

  async ask(method, params) {
    if (!this.#socket?.connected) throw unanswered();
    let reply;
    try {
      reply = await this.#socket.timeout(CALL_MS).emitWithAck(method, params);
    } catch {
      throw unanswered();
    }
    if (reply.error) throw new CallError(reply.error);
    return reply;
  }

  visit() {} // the mailbox is subscribed to

  async #read(channel) {
    const place = this.#channels.get(channel);
    if (!place || !this.#socket.connected || this.closed) return; // with the next connection all channels are read
    const recover = place.since && { recover: true, ...place.since };
    try {
      const result = await this.ask("subscribe", { channel, ...recover, ...(channel.startsWith("chat:") && { join_leave: true }) });
      for (const publication of result.publications ?? []) this.take(channel, publication);
      if (result.was_recovering && !result.recovered) this.tell("lost", { channel });
      if (result.positioned) Object.assign(place, { since: { epoch: result.epoch, offset: result.offset }, next: null, count: 0 });
    } catch (error) {
      if (error.code === ALREADY_SUBSCRIBED) return; // in it already
      if (error.temporary) setTimeout(() => this.#read(channel), 1000 + Math.random() * 2000);
      else this.tell("state", { name: "closed", text: `${channel}: ${error.message}` });
    }
  }

  #event(name, data) {
    const channel = data?.room ? `chat:${data.room}` : `me:#${this.user}`;
    this.tell("event", { channel, name, data });
    const place = this.#channels.get(channel);
    if (place && ++place.count % REFRESH === 0) this.#refresh(channel, place);
  }

  /** Events of an application say no offset, so where we are is asked for. Publications may be behind the answer, so it
      is gone on from only once the next answer has come. */
  async #refresh(channel, place) {
    const { epoch, offset } = await this.ask("history", { channel, limit: 0 }).catch(() => ({}));
    if (!epoch) return;
    place.since = place.next ?? place.since;
    place.next = { epoch, offset };
  }
}
