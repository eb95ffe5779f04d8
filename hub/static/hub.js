/* hub.js: a client of the hub for web pages and Node, one ES module without dependencies.

     import { Hub } from "/hub.js";
     const hub = new Hub();
     hub.subscribe("chat:lobby").on("publication", ({ data }) => show(data));
     hub.open();
     await hub.publish("chat:lobby", { text: "hi" });

   Does: connect by WebSocket, else by an event stream, else by polls; come back by itself and go on in each channel where
   it was, also over another wire; keep what is published meanwhile, within a bound.
   Does not: acknowledge mailboxes; an SDK of Centrifugo's does.
   Served by: hub/assets.py at /hub.js. The wires: hub/session.py, hub/transports/sse.py, hub/transports/longpoll.py.
   Never break: the position of a channel never claims a publication that has not been passed on; after `close` there is
   no timer, listener, socket or request left; a listener that throws hurts nobody else.
*/

const [BACKOFF_BASE_MS, BACKOFF_CAP_MS] = [500, 20_000];
const STABLE_MS = 30_000; // who was connected so long was well connected: backoff and the choice of wire begin anew
const [LOOK_MS, LOOK_CAP_MS] = [60_000, 3_600_000]; // on a lesser wire, WebSocket is looked for: more and more rarely
const CONNECT_MS = 10_000; // from the beginning of an attempt to the hub's first words
const PING_GRACE_MS = 10_000; // how much later than announced the hub's ping, or its answer to a poll, may come
const TRIES = 3; // so often in a row a wire that has worked before may fail to open until the next one is tried
const POLL_WAIT_S = 25; // below the 30 to 60 s at which proxies give up on a silent answer
const COMMANDS_PER_MESSAGE = 100; // below the hub's own limit (client.commands_per_message, 256)
const WINDOW = 16; // publications over WebSocket that wait for their answers at a time; far below client.pending_commands
const EVENT_LETTERS = 16_777_216; // of one event of an event stream; the hub's are bounded, this is for what is no hub
const WISH_LETTERS = 8000; // of all that is asked of channels in a query; proxies and the hub bound a request's head
const TIMER_CAP_MS = 2 ** 31 - 1; // a longer timer ends at once
const CURSOR_LETTERS = 4096; // longer cursors name only the newest generation of each epoch (hub/cursor.py)
// Codes of the hub (hub/errors.py); who is closed with FINAL or more is not to come back.
const [NOT_AVAILABLE, TOKEN_EXPIRED, FINAL] = [108, 109, 3500];
const [RESUBSCRIBE, UNSUBSCRIBED_EXPIRED, CONNECTION_EXPIRED, SUBSCRIPTION_EXPIRED] = [2500, 2501, 3005, 3006];

/** Full jitter: anything up to the doubled wait, so that clients lost together don't come back together. */
const backoffMs = (attempt) => Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
const now = () => performance.now();

/** @typedef {"websocket" | "sse" | "poll"} WireName
    @typedef {{epoch: string, offset: number}} Position  behind the publication `offset` of a `stream` channel
    @typedef {{user?: string, client?: string}} ClientInfo
    @typedef {{data: any, offset?: number, info?: ClientInfo, tags?: Record<string, string>}} Publication */
/** What the hub is doing. retryAt: in ms of performance.now().
    @typedef {{name: "connecting", wire: WireName} | {name: "connected", wire: WireName, client?: string, version?: string}
      | {name: "waiting", code: number, reason: string, retryAt: number} | {name: "closed", code: number, reason: string}} State */
/** `lost`: what is missing can't be had any more. `error`: the hub does not grant this subscription; it has ended.
    `join` and `leave` come over WebSocket, and over event streams where all channels ask for them; never over polls.
    `leftOut`: so many symbols of a watch list do not fit into it now; 0 once all do. `rate`: the hub sends this channel
    so many times a second at most from now on, as a token allows no more.
    @typedef {{publication: Publication, join: ClientInfo, leave: ClientInfo, lost: null, error: HubError, leftOut: number, rate: number}}
      ChannelEvents */
/** `notice`: to all connections of this user. `dropped`: so many publications of `none` channels we were too slow for.
    @typedef {{state: State, notice: any, dropped: number}} HubEvents */
/** `url`: of the hub, such as "https://hub.example.com"; the page's own where it is left out.
    `wires`: those to use, the best first. `token`: one, or what gets a fresh one; it is asked again once one has expired;
    over WebSocket the connection then goes on with the fresh one.
    `queue`: publications that may wait for a connection; one more is refused.
    @typedef {{url?: string, wires?: WireName[], token?: string | (() => string | Promise<string>), queue?: number}} Options */
/** `joinLeave`: be told who comes and goes. `since`: go on from there, such as a `position` from before a reload. `data`:
    what is asked of the channel (hub/wants.py), or what tells it at each new beginning. Over event streams and polls only what
    fits into a query; over polls without `marks`. `token`: a channel token, or what gets a fresh one; it is asked again
    before one ends, and once one has. Over event streams and polls they stand in the query too, so only some dozens fit.
    @typedef {{joinLeave?: boolean, since?: Position | null, data?: object | (() => object),
      token?: string | ((channel: string) => string | Promise<string>)}} SubscribeOptions */

/** What the hub did not do, or our own error (code 0). temporary: trying again may help. status: of HTTP, or 0.
    index, token: which channel, or channel token, of a request it was. */
export class HubError extends Error {
  /** @param {string} message @param {{code?: number, temporary?: boolean, status?: number, hintMs?: number, index?: number, token?: number}} [more] */
  constructor(message, { code = 0, temporary = false, status = 0, hintMs = 0, index = -1, token = -1 } = {}) {
    super(message);
    this.name = "HubError";
    this.code = code;
    this.temporary = temporary;
    this.status = status;
    this.hintMs = hintMs;
    this.index = index;
    this.token = token;
  }
}

/** Listeners by the event's name.
    @template {object} Events */
class Emitter {
  #listeners = new Map();

  /** Call `listener` for each event `name`; returns what takes it off again.
      @template {keyof Events} K @param {K} name @param {(value: Events[K]) => void} listener @returns {() => void} */
  on(name, listener) {
    const all = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, all.add(listener));
    return () => void all.delete(listener);
  }

  /** Call all listeners of an event, in the order in which they came.
      @template {keyof Events} K @param {K} name @param {Events[K]} value */
  emit(name, value) {
    for (const listener of this.#listeners.get(name) ?? []) {
      try { listener(value); } catch (error) {
        queueMicrotask(() => { throw error; }); // reported as if the browser had called it, once our own work is done
      }
    }
  }
}

/** One channel, whatever wire brings it; what `Hub.subscribe` gives. What begins with _ is for the wires.
    @extends {Emitter<ChannelEvents>} */
export class Subscription extends Emitter {
  #seen = 0;
  /** @type {Position | null} What a wire may go on from; behind #seen where event streams name a cursor now and then. */
  _at = null;
  _mark = ""; // stands for the value that we have of a `latest` channel; polls bring it
  _marks = ""; // the same of a watch list's symbols, as they stand in a cursor
  _latest = false; // it is known to be a `latest` channel
  _failures = 0; // how often in a row the hub could not let us in for the moment
  _renewal; // stands for the timer that renews its channel token
  #token; // its channel token, once there is one
  #leftOut = 0;

  /** Made by `Hub.subscribe`. @param {string} channel @param {SubscribeOptions} options @param {() => void} leave */
  constructor(channel, { joinLeave = false, since = null, data, token = "" }, leave) {
    super();
    this.channel = channel;
    this._joinLeave = joinLeave;
    this._data = data;
    this._source = token; // of channel tokens
    this._leave = leave;
    this._key = cursorKey(channel);
    if (since) this._move(since.epoch, since.offset);
  }

  /** Where we are in a `stream` channel, for `since`; null: nowhere yet, or in another one. @returns {Position | null} */
  get position() { return this._at && { ...this._at }; }

  /** Its channel token; `fresh`: another one, where it can be had. */
  async _grant(fresh = false) {
    if (fresh) this._forgetGrant();
    return (this.#token ??= this._renews ? await this._source(this.channel) : this._source);
  }
  _forgetGrant() { this.#token = undefined; }
  get _renews() { return typeof this._source === "function"; }
  _tellLeftOut(count) {
    if (count === this.#leftOut) return;
    this.#leftOut = count;
    this.emit("leftOut", count);
  }
  _wish() { return typeof this._data === "function" ? this._data() : this._data; }
  /** End it; `Hub.subscribe` makes a new one then. */
  unsubscribe() { this._leave(); }
  _take(pub) {
    if (pub.offset && pub.offset <= this.#seen) return; // sent again, behind a cursor of before
    this.#seen = pub.offset ?? this.#seen;
    this.emit("publication", pub);
  }
  _move(epoch, offset) {
    this._at = { epoch, offset };
    this.#seen = Math.max(this.#seen, offset);
  }
  _lose() {
    [this.#seen, this._at] = [0, null];
    this.emit("lost", null);
  }
}

// Cursors: positions in several channels as one text, as hub/cursor.py writes it. hub.js comes from the hub that it talks
// to, so it may know; with cursors of another version it begins anew.

function encodeCursor(subs) {
  const place = (at, clip) => `${at.offset}~${clip ? at.epoch.split(",").at(-1) : at.epoch}`;
  const field = ({ _key, _at, _mark, _marks }, clip) => (_at?.epoch ? `~${_key}~${place(_at, clip)}` : _mark ? `~${_key}~v~${_mark}` : _marks);
  const [whole, clipped] = [false, true].map((clip) => subs.map((sub) => field(sub, clip)).join(""));
  return whole && `1${whole.length < CURSOR_LETTERS ? whole : clipped}`;
}

function applyCursor(text, subs) {
  const [version, ...fields] = text.split("~");
  const byKey = new Map(subs.map((sub) => [sub._key, sub]));
  const list = subs.find(({ channel }) => channel.endsWith(":$watch"));
  let marks = ""; // of channels that we have not named: a list's symbols
  for (let i = 0; version === "1" && i + 2 < fields.length; i += 3) {
    const [key, place, rest] = fields.slice(i, i + 3);
    const sub = byKey.get(key);
    if (place !== "v") sub?._move(rest, Number(place));
    else if (sub) sub._mark = rest;
    else marks += `~${key}~v~${rest}`;
  }
  if (list) list._marks = marks;
}

/** What is asked of channels, as a parameter of `/sse` or `/poll`: none where there is nothing, or it would not fit. */
function wishes(subs, path) {
  const asked = subs.map((sub) => [sub.channel, sub._wish()]).filter(([, data]) => data);
  const text = JSON.stringify(Object.fromEntries(asked), (name, value) => (name === "marks" && path === "/poll" ? undefined : value));
  return asked.length && encodeURIComponent(text).length <= WISH_LETTERS ? [["data", text]] : [];
}

/** What stands for a channel in a cursor, such as "0d3k9v2m": FNV-1a of 64 bits, folded to 40.
    @param {string} channel @returns {string} */
export function cursorKey(channel) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(channel)) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  return BigInt.asUintN(40, hash ^ (hash >> 40n)).toString(32).padStart(8, "0");
}

/** One connection, from its beginning to its end; another one begins anew. Each kind has `enter` and `leave` (a channel
    comes or goes), `publish` and perhaps `shut`, and tells its link: opened, ended, refused, emit. An end has code, reason, final
    (don't come back), spoke (by words of the hub, so the wire itself is good), hintMs (the hub wants us to wait so long). */
class Wire {
  window = 1; // publications that may wait for their answers; and those that do
  busy = 0;
  over = false;
  aborter = new AbortController(); // ends what the wire has asked for over HTTP
  turn = new AbortController(); // the same of the request that listens now
  #timers = new Set();
  #watchdog;
  #silenceMs = 0;
  #heard = [0, 0];
  constructor(link) { this.link = link; }

  /** The hub has spoken, and from now on may be silent for `ms`; 0: for ever. */
  heard(ms = this.#silenceMs) {
    this.#silenceMs = ms;
    this.#heard = [now(), Date.now()];
    this.check();
  }

  /** Look whether the hub has been silent for too long. Browsers hold back the timers of hidden pages and sleeping
      machines. The clock of performance may stand still in that sleep, that of Date may be set: the later one counts. */
  check() {
    clearTimeout(this.#watchdog);
    if (!this.#silenceMs || this.over) return;
    const leftMs = this.#silenceMs - Math.max(now() - this.#heard[0], Date.now() - this.#heard[1]);
    if (leftMs > 0) this.#watchdog = setTimeout(() => this.check(), leftMs);
    else this.end({ reason: "the hub fell silent" });
  }

  /** Call `act` in so many ms, unless the wire is over then. */
  later(act, ms) {
    if (this.over) return;
    const timer = setTimeout(() => this.#timers.delete(timer) && act(), ms);
    this.#timers.add(timer);
  }

  /** What all wires bring of a channel. */
  take({ channel, pub, join, leave }) {
    const sub = this.link.subs.get(channel);
    if (pub) sub?._take(pub);
    else if (join) sub?.emit("join", join.info);
    else if (leave) sub?.emit("leave", leave.info);
    return sub;
  }

  /** What the hub tells of us, or somebody tells all connections of this user. */
  note(data) {
    const { dropped, left_out: leftOut, rate } = data?.hub ?? {};
    if (dropped) this.link.emit("dropped", dropped);
    else if (leftOut) this.link.subs.get(leftOut.channel)?._tellLeftOut(leftOut.count);
    else if (rate) this.link.subs.get(rate.channel)?.emit("rate", rate.hz);
    else this.link.emit("notice", data);
  }

  /** Leave nothing behind, and say nothing more; who ends it from outside says why to nobody. */
  end(end) {
    if (this.over) return;
    this.over = true;
    for (const timer of [this.#watchdog, ...this.#timers]) clearTimeout(timer);
    for (const aborter of [this.aborter, this.turn]) aborter.abort();
    this.shut?.();
    if (end) this.link.ended(end);
  }
}

/** The native protocol, JSON over WebSocket (https://centrifugal.dev/docs/transports/client_protocol). */
class WebSocketWire extends Wire {
  window = WINDOW;
  #socket;
  #asked = new Map(); // what is called with the answer, by the command's id
  #lines = []; // commands of this turn
  #lastId = 0;
  #connected = false;
  constructor(link) {
    super(link);
    this.heard(CONNECT_MS);
    try {
      this.#open(`${link.url.replace(/^http/, "ws")}/connection/websocket`);
    } catch (error) {
      queueMicrotask(() => this.end({ reason: String(error) })); // forbidden by the page's own policy
    }
  }
  #open(url) {
    this.#socket = new WebSocket(url);
    const words = { token: this.link.token, name: "hub.js" };
    this.#socket.onopen = () => this.#command("connect", words, (...answer) => this.#greeted(...answer));
    this.#socket.onmessage = ({ data }) => this.#receive(data);
    this.#socket.onerror = () => {}; // `close` follows, and says more
    this.#socket.onclose = ({ code, reason }) => this.end({ code, reason, final: code >= FINAL, spoke: code >= 3000 });
  }
  shut() {
    const socket = this.#socket;
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    socket?.close(); // where it is half dead the browser may take long over it; nobody listens any more
    const error = new HubError("the connection was lost, perhaps after it was published", { temporary: true });
    for (const answered of this.#asked.values()) answered(error);
  }
  enter(sub) { if (this.#connected) this.#join(sub); }
  leave({ channel }) {
    if (this.#connected) this.#command("unsubscribe", { channel }, () => {}); // whatever the answer is: we are out
  }
  publish(entry) {
    if (entry.posted) return post(this, entry); // perhaps published already: to be repeated only there, under its key
    return this.ask("publish", { channel: entry.channel, data: entry.data });
  }

  /** The result of a command, without a time limit: a hub that is dead is found out by its missing pings. */
  ask(method, params) {
    return new Promise((resolve, reject) => this.#command(method, params, (error, result) => (error ? reject(error) : resolve(result))));
  }

  /** answered(error, result): called while the answer is read. Later, as by a promise, would be too late for one that
      brings what was missed: what was published since is right behind it, and must not be taken for all that is new. */
  #command(method, params, answered) {
    const id = ++this.#lastId;
    this.#asked.set(id, (error, reply) => answered(error, reply?.[method] ?? {}));
    // What one turn writes leaves as one message: twenty subscriptions are one frame.
    if (this.#lines.push(JSON.stringify({ id, [method]: params })) > 1) return;
    queueMicrotask(() => {
      while (this.#lines.length && !this.over) this.#socket.send(this.#lines.splice(0, COMMANDS_PER_MESSAGE).join("\n"));
    });
  }
  #greeted(error, { client, version, ping, ttl }) {
    const final = !error?.temporary && error?.code !== TOKEN_EXPIRED;
    if (error) return this.end({ code: error.code, reason: error.message, final, spoke: true });
    this.#connected = true;
    this.heard(ping ? ping * 1000 + PING_GRACE_MS : 0);
    this.#refreshIn(ttl);
    for (const sub of this.link.subs.values()) this.#join(sub);
    this.link.opened({ client, version });
  }

  /** Our token ends in so many seconds, and the hub waits a little longer for another one. */
  #refreshIn(ttl) {
    if (ttl && this.link.renew) this.later(() => this.#refresh(0), Math.min(ttl * 1000, TIMER_CAP_MS));
  }
  async #refresh(attempt) {
    try {
      const { ttl } = await this.ask("refresh", { token: await this.link.renew() });
      this.#refreshIn(ttl);
    } catch { // none to be had now, or one that has ended too; without one in time the hub ends us (3005)
      this.later(() => this.#refresh(attempt + 1), backoffMs(attempt));
    }
  }
  /** Any listener may close or unsubscribe. */
  #isOurs(sub) { return this.link.subs.get(sub.channel) === sub && !this.over; }
  #join(sub, fresh = false) {
    if (!this.#isOurs(sub)) return;
    if (!sub._source) return this.#subscribe(sub, "");
    const again = () => this.later(() => this.#join(sub, fresh), backoffMs(sub._failures++));
    sub._grant(fresh).then((token) => this.#subscribe(sub, token), again);
  }
  #subscribe(sub, token) {
    const { channel, _at, _latest, _joinLeave } = sub;
    const isOurs = () => this.#isOurs(sub);
    if (!isOurs()) return;
    const recover = _latest || _at !== null;
    const data = sub._wish();
    const options = { ...(_joinLeave && { join_leave: true }), ...(data && { data }), ...(token && { token }) };
    const params = { channel, ...options, ...(recover && { recover, ..._at }) };
    this.#command("subscribe", params, (error, result) => {
      if (!isOurs()) return;
      const isOld = error?.code === TOKEN_EXPIRED && sub._renews;
      if (error?.temporary || isOld) return this.later(() => this.#join(sub, isOld), backoffMs(sub._failures++));
      if (error) return this.link.refused(sub, error);
      sub._failures = 0;
      if (result.recoverable && !result.positioned && !recover && !data) {
        sub._latest = true; // its newest value comes to who comes back, so that is what we do
        this.leave(sub);
        return this.#join(sub);
      }
      this.#renewIn(sub, result.ttl);
      sub._tellLeftOut(0); // the hub says so again where some are
      if (result.was_recovering && !result.recovered) sub._lose();
      for (const pub of result.publications ?? []) if (isOurs()) sub._take(pub);
      if (result.positioned && isOurs()) sub._move(result.epoch, result.offset ?? 0);
    });
  }

  /** Its channel token ends in so many seconds; the hub waits a little longer for another one, and then has us out (2501). */
  #renewIn(sub, ttl) {
    const turn = (sub._renewal = {});
    if (ttl && sub._renews) this.later(() => this.#renew(sub, turn, 0), Math.min(ttl * 1000, TIMER_CAP_MS));
  }
  async #renew(sub, turn, attempt) {
    const isDue = () => this.#isOurs(sub) && sub._renewal === turn;
    try {
      const token = isDue() && (await sub._grant(true));
      const { ttl } = isDue() ? await this.ask("sub_refresh", { channel: sub.channel, token }) : {};
      if (isDue()) this.#renewIn(sub, ttl);
    } catch {
      if (isDue()) this.later(() => this.#renew(sub, turn, attempt + 1), backoffMs(attempt));
    }
  }
  #receive(text) {
    this.heard();
    try {
      for (const line of text.split("\n")) {
        if (!line || this.over) continue;
        const { id, error, push, ...reply } = JSON.parse(line);
        const answered = this.#asked.get(id);
        this.#asked.delete(id);
        if (push) this.#push(push);
        else if (!id) this.#socket.send("{}"); // to a ping
        else answered?.(error && new HubError(error.message, error), reply);
      }
    } catch (error) {
      this.end({ reason: `not the hub's protocol: ${error}` });
    }
  }
  #push(push) {
    const { message, pub, unsubscribe } = push;
    if (message) return this.note(message.data);
    const sub = this.take(push);
    if (pub?.offset && sub?._at) sub._move(sub._at.epoch, pub.offset);
    else if (sub && unsubscribe?.code >= RESUBSCRIBE) this.#join(sub, unsubscribe.code === UNSUBSCRIBED_EXPIRED);
    else if (sub && unsubscribe) this.link.refused(sub, new HubError(unsubscribe.reason, unsubscribe));
  }
}

/** A request with our token. Throws a HubError for what is not good, with code 0 where it is not the hub's, but a proxy's. */
async function request({ url, token }, path, options) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(url + path, { cache: "no-store", ...options, headers });
  if (response.ok) return response;
  const { status } = response;
  const error = (await response.json().catch(() => null))?.error;
  const hintMs = 1000 * Number(response.headers.get("Retry-After")) || 0;
  throw new HubError(error?.message ?? `HTTP ${status}`, { temporary: [429, 502, 503, 504].includes(status), ...error, status, hintMs });
}

/** Publish over HTTP; may be repeated with the same entry. */
async function post({ link, aborter }, entry) {
  entry.posted = true;
  const { channel, data, key } = entry;
  const headers = { "Content-Type": "application/json" }; // nothing else is taken: a foreign page's form can't send it
  const sub = link.subs.get(channel);
  const token = sub?._source && (await sub._grant(entry.isOld));
  const body = JSON.stringify({ channel, data, ...(key && { idempotency_key: key }), ...(token && { token }) });
  try {
    return await (await request(link, "/publish", { method: "POST", headers, body, signal: aborter.signal })).json();
  } catch (error) {
    const isOld = error.code === TOKEN_EXPIRED && sub?._renews && !entry.isOld; // or else it is the connection's
    if (!isOld && (error.code !== NOT_AVAILABLE || !key)) throw error;
    if (isOld) entry.isOld = true;
    else entry.key = ""; // `latest` channels take no key: to repeat a newest value changes nothing
    return post({ link, aborter }, entry);
  }
}

/** What event streams and polls have in common: requests that name all channels, and where we are in them. Each has
    `listen`, which throws where it can't. */
class RequestWire extends Wire {
  #due = false;
  #holders = []; // those whose channel tokens the last request had, in their order
  hintMs = 0;
  constructor(link) { super(link); this.enter(); }

  /** Begin a request with the channels that there are now; once for all changes of a turn. */
  enter() {
    if (!this.#due) queueMicrotask(() => this.#run());
    this.#due = true;
  }
  leave = this.enter;
  async #run() {
    this.#due = false;
    this.turn.abort();
    if (this.over) return;
    const { signal } = (this.turn = new AbortController());
    const subs = [...this.link.subs.values()];
    try {
      if (subs.length) return await this.listen(signal, subs);
      this.heard(0);
      this.link.opened({});
    } catch (error) {
      if (signal.aborted) return;
      const sub = subs[error.index] ?? this.#holders[error.token]; // one that is not granted spoils the request of all
      if (!sub) return this.#fail(error);
      if (error.code === TOKEN_EXPIRED && sub._renews) return this.#renew(sub);
      this.link.refused(sub, error);
      this.enter();
    }
  }
  publish(entry) {
    return post(this, entry).catch((error) => {
      if (error.code === TOKEN_EXPIRED) this.#fail(Object.assign(error, { temporary: true })); // again, with a fresh one
      throw error;
    });
  }
  async ask(signal, path, subs, parameters) {
    const asked = await Promise.all(subs.filter((sub) => sub._source).map(async (sub) => [sub, await sub._grant()]));
    const granted = asked.filter(([, token]) => token);
    this.#holders = granted.map(([sub]) => sub);
    const wanted = [...wishes(subs, path), ...granted.map(([, token]) => ["channel_token", token])];
    const query = new URLSearchParams([...parameters, ...subs.map(({ channel }) => ["channel", channel]), ...wanted]);
    const cursor = encodeCursor(subs);
    const response = await request(this.link, `${path}?${query}`, { signal, headers: cursor ? { "Last-Event-ID": cursor } : {} });
    for (const sub of subs) sub._failures = 0;
    return response;
  }

  /** Another request, with a fresh token for this channel; soon, as that may be none either. */
  #renew(sub) {
    sub._forgetGrant();
    this.later(() => this.enter(), backoffMs(sub._failures++));
  }
  #fail(error) {
    if (!(error instanceof HubError)) return this.end({ reason: String(error), hintMs: this.hintMs });
    const { code, message: reason, status, hintMs, temporary } = error;
    if (status === 401 && code !== TOKEN_EXPIRED) return this.end({ code: FINAL, reason, final: true });
    this.end({ code, reason, hintMs, spoke: code > 0, final: code > 0 && status !== 401 && !temporary });
  }
}

/** Event streams (hub/eventstream.py), read by fetch: EventSource sends no token and tells of no status. */
class SseWire extends RequestWire {
  async listen(signal, subs) {
    this.heard(CONNECT_MS);
    const response = await this.ask(signal, "/sse", subs, [["join_leave", subs.every((one) => one._joinLeave)]]);
    const stream = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { done, value } = await stream.read();
      if (signal.aborted) return;
      if (done) throw new Error("the event stream ended");
      this.heard();
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      if (text.length > EVENT_LETTERS) throw new Error("an event is too long");
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => /^([^:]*):? ?(.*)$/.exec(line).slice(1)));
        if (fields.retry) this.hintMs = Number(fields.retry);
        if (fields.data) this.#dispatch(fields.event, JSON.parse(fields.data)); // one line of JSON
        if (fields.id) applyCursor(fields.id, subs); // behind the publication that it claims
        if (signal.aborted) return;
      }
    }
  }
  #dispatch(event, data) {
    const { code, reason, dropped, channel } = data;
    if (event === "lost" && dropped) this.link.emit("dropped", dropped);
    else if (event === "lost") this.link.subs.get(channel)?._lose();
    else if (event === "notice") this.note(data.data);
    else if (event === "closed") this.end({ code, reason, final: !data.reconnect, spoke: true, hintMs: this.hintMs });
    else if (event !== "open") return this.take(data);
    else {
      this.heard(data.ping * 1000 + PING_GRACE_MS);
      for (const sub of this.link.subs.values()) sub._tellLeftOut(0); // the hub says so again where some are
      this.link.opened({ client: data.client });
    }
  }
}

/** One request at a time (hub/transports/longpoll.py). */
class PollWire extends RequestWire {
  async listen(signal, subs) {
    // The first answer comes at once, and tells where we are from now on.
    for (let waitS = 0; !signal.aborted; waitS = POLL_WAIT_S) {
      this.heard(waitS * 1000 + PING_GRACE_MS);
      const response = await this.ask(signal, "/poll", subs, [["wait", waitS]]);
      const answer = response.status === 200 ? await response.json() : null;
      const { lost = [], messages = [], left_out: leftOut = {} } = answer ?? {};
      if (signal.aborted) return;
      this.link.opened({});
      for (const channel of lost) this.link.subs.get(channel)?._lose();
      for (const message of messages) if (!this.over) this.take(message);
      for (const sub of answer ? subs : []) sub._tellLeftOut(leftOut[sub.channel] ?? 0);
      // Not if it was closed in the middle of the messages.
      if (!this.over) applyCursor(response.headers.get("Hub-Cursor") ?? "", subs);
    }
  }
}

const WIRES = { websocket: WebSocketWire, sse: SseWire, poll: PollWire };

/** A client that stays connected from `open` to `close`, or until the hub tells it not to come back.
    @extends {Emitter<HubEvents>} */
export class Hub extends Emitter {
  #options;
  #subs = new Map(); // by channel
  #queue = []; // publications that have not been sent
  /** @type {State} */
  #state = { name: "closed", code: 0, reason: "not opened" };
  #wire;
  #scout; // a wire that looks whether WebSocket works again
  #looks = 0; // how often that was looked for
  #ears; // stops listening to the browser
  #turn = {}; // stands for one attempt; what belongs to an older one is not listened to
  #index = 0; // which of the wires is used
  #tries = 1; // how often it may still fail to open
  #attempt = 0; // for the backoff; and that of publications over HTTP
  #pauses = 0;
  #token;
  #offline = false;
  #connectedAt = 0; // performance.now() of the hub's first words; and before which it does not want us back
  #notBefore = 0;
  #timer; // until the next attempt, for the token of this one, or until WebSocket is looked for

  /** @param {Options} [options] Throws a TypeError for what can't be. */
  constructor({ url = globalThis.location?.origin, wires = ["websocket", "sse", "poll"], token = "", queue = 100 } = {}) {
    super();
    if (!url) throw new TypeError("url is missing, and there is no page that could tell");
    const unknown = wires.find((name) => !(name in WIRES));
    if (!wires.length || unknown) throw new TypeError(`wires: found ${unknown ?? "none"}; allowed: ${Object.keys(WIRES)}`);
    this.#options = { url: url.replace(/\/$/, ""), wires: [...wires], token, queue };
  }

  /** What it is doing; each change is an event `state`. @returns {State} */
  get state() { return this.#state; }

  /** Connect, and stay connected. Nothing happens where it is open already. */
  open() {
    if (this.#state.name !== "closed") return;
    [this.#offline, this.#attempt, this.#notBefore, this.#looks] = [false, 0, 0, 0];
    const { signal } = (this.#ears = new AbortController());
    for (const type of ["online", "offline"]) globalThis.addEventListener?.(type, () => this.#onEvent(type), { signal });
    globalThis.document?.addEventListener("visibilitychange", () => this.#onEvent(document.visibilityState), { signal });
    this.#restart();
  }

  /** End the connection and what waits for it; subscriptions stay, for another `open`. */
  close() { if (this.#state.name !== "closed") this.#stop(0, "closed"); }

  /** Be in a channel, now and after each reconnect, until `unsubscribe`; the same object for a channel that we are in.
      @param {string} channel @param {SubscribeOptions} [options] @returns {Subscription} */
  subscribe(channel, options = {}) {
    if (this.#subs.has(channel)) return this.#subs.get(channel);
    const sub = new Subscription(channel, options, () => this.#forget(sub) && this.#wire?.leave(sub));
    this.#subs.set(channel, sub);
    this.#wire?.enter(sub);
    return sub;
  }

  /** Publish data; without a connection it waits for one. Resolves when the hub has taken it. Rejects with a HubError: the
      hub refuses, too many wait (temporary), the client was closed, or a WebSocket was lost before the answer came; by the
      last two it may have been published all the same.
      @param {string} channel @param {any} data @returns {Promise<any>} */
  async publish(channel, data) {
    const { queue } = this.#options;
    if (this.#state.name === "closed") throw new HubError("the client is closed");
    if (this.#queue.length >= queue) throw new HubError(`${queue} publications wait already`, { temporary: true });
    const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    return new Promise((resolve, reject) => {
      this.#queue.push({ channel, data, key, posted: false, resolve, reject });
      this.#flush();
    });
  }

  /** Who is in a channel, by the connection's id; only over WebSocket.
      @param {string} channel @returns {Promise<Record<string, ClientInfo>>} */
  async presence(channel) { return (await this.#ask("presence", { channel })).presence ?? {}; }

  /** What is kept of a `stream` channel, newest first where `reverse`; offset and epoch are where it is now. Only over WebSocket.
      @param {string} channel @param {{limit?: number, since?: Position, reverse?: boolean}} [options]
      @returns {Promise<{publications: Publication[], offset: number, epoch: string}>} */
  async history(channel, options = {}) { return this.#ask("history", { channel, ...options }); }

  /** Call a method of the hub (hub/rpc.py), or of its application; only over WebSocket.
      @param {string} method @param {any} [data] @returns {Promise<any>} */
  async rpc(method, data) { return (await this.#ask("rpc", { method, data })).data; }
  async #ask(method, params) {
    const isAble = this.#wire instanceof WebSocketWire && this.#state.name === "connected";
    if (isAble) return this.#wire.ask(method, params);
    throw new HubError(`${method} needs a WebSocket that is connected`, { code: NOT_AVAILABLE, temporary: true });
  }
  async #connect() {
    clearTimeout(this.#timer);
    const turn = (this.#turn = {});
    const { url, wires, token } = this.#options;
    const [wire, subs] = [wires[this.#index], this.#subs];
    this.#show({ name: "connecting", wire });
    if (turn !== this.#turn) return; // a listener has closed us
    this.#timer = setTimeout(() => this.#ended({ reason: "no token came in time", spoke: true }, turn), CONNECT_MS);
    try {
      this.#token ??= typeof token === "function" ? await token() : token;
    } catch (error) {
      this.#ended({ reason: `no token: ${error}`, spoke: true }, turn);
    }
    if (turn !== this.#turn) return;
    clearTimeout(this.#timer);
    this.#connectedAt = 0;
    const opened = (info) => this.#opened({ name: "connected", wire, ...info });
    const ended = (end) => this.#ended(end, turn);
    const refused = (sub, error) => this.#forget(sub) && sub.emit("error", error);
    const renew = typeof token === "function" && (async () => (this.#token = await token()));
    this.#wire = new WIRES[wire]({ url, token: this.#token, subs, opened, ended, refused, renew, emit: this.emit.bind(this) });
  }
  #opened(state) {
    if (this.#connectedAt) return; // a stream with other channels, or the next poll
    this.#connectedAt = now();
    this.#tries = TRIES;
    if (this.#options.wires.slice(0, this.#index).includes("websocket")) this.#lookAhead();
    this.#show(state);
    this.#flush();
  }
  #ended({ code = 0, reason = "", final = false, spoke = false, hintMs = 0 }, turn) {
    if (turn !== this.#turn) return;
    this.#abandon();
    if (code === TOKEN_EXPIRED || code === CONNECTION_EXPIRED) this.#token = null;
    if (code === SUBSCRIPTION_EXPIRED) for (const sub of this.#subs.values()) sub._forgetGrant();
    if (final || (code === TOKEN_EXPIRED && typeof this.#options.token !== "function")) return this.#stop(code, reason);
    if (this.#connectedAt && now() - this.#connectedAt >= STABLE_MS) {
      this.#attempt = 0;
      if (this.#index) [this.#index, this.#tries] = [0, 1]; // what kept us from the better wire may be over
    }
    if (!this.#connectedAt && !spoke && --this.#tries <= 0) {
      [this.#index, this.#tries] = [(this.#index + 1) % this.#options.wires.length, 1];
      if (this.#index) return this.#connect(); // at once, as it is not the first again
    }
    const delayMs = hintMs + backoffMs(this.#attempt++);
    this.#notBefore = now() + hintMs;
    this.#timer = setTimeout(() => this.#connect(), delayMs);
    this.#show({ name: "waiting", code, reason, retryAt: now() + delayMs });
  }

  /** While another wire serves us, see now and then whether the hub answers over WebSocket again, and go back then. */
  #lookAhead() {
    const waitMs = Math.min(LOOK_CAP_MS, LOOK_MS * 2 ** this.#looks++) * (0.5 + Math.random() / 2); // not all at once
    const [opened, ended] = [() => this.#restart(), () => this.#lookAhead()];
    this.#timer = setTimeout(() => {
      this.#scout = new WebSocketWire({ url: this.#options.url, token: this.#token, subs: new Map(), opened, ended });
    }, waitMs);
  }

  /** Leave the attempt or the connection that there is. */
  #abandon() {
    this.#turn = {};
    clearTimeout(this.#timer);
    const wires = [this.#wire, this.#scout];
    this.#wire = this.#scout = null;
    for (const wire of wires) wire?.end();
  }

  /** Connect anew by the best wire, but not before the hub wants us back. */
  #restart() {
    this.#abandon();
    [this.#index, this.#tries] = [0, 1];
    if (this.#notBefore > now()) this.#timer = setTimeout(() => this.#connect(), this.#notBefore - now());
    else this.#connect();
  }
  #stop(code, reason) {
    this.#abandon();
    this.#ears.abort();
    for (const { reject } of this.#queue.splice(0)) reject(new HubError(`the client was closed: ${reason}`, { code }));
    this.#show({ name: "closed", code, reason });
  }
  #show(state) {
    this.#state = state;
    this.emit("state", state);
  }

  /** What the browser tells. */
  #onEvent(type) {
    const waiting = this.#state.name === "waiting";
    if (type === "visible" && !waiting) this.#wire?.check();
    // The network may be another one: what was connected is perhaps dead, and what was blocked perhaps not.
    else if (type === "visible" || (type === "online" && (waiting || this.#offline))) this.#restart();
    // What is written from now on is to wait for a connection, and not in a socket that nobody empties.
    else if (type === "offline" && !waiting) this.#ended({ reason: "the browser is offline", spoke: true }, this.#turn);
    if (type.endsWith("line")) this.#offline = type === "offline";
  }

  /** Take a subscription out; false: it was not in any more. */
  #forget(sub) { return this.#subs.get(sub.channel) === sub && this.#subs.delete(sub.channel); }

  /** Send what waits, in order. */
  #flush() {
    const wire = this.#wire;
    while (wire && this.#state.name === "connected" && wire.busy < wire.window && this.#queue.length) {
      this.#send(wire, this.#queue.shift());
    }
  }
  async #send(wire, entry) {
    wire.busy += 1;
    try {
      entry.resolve(await wire.publish(entry));
      this.#pauses = 0;
    } catch (error) {
      const isFinal = !entry.posted || (error instanceof HubError && !error.temporary);
      if (isFinal) entry.reject(error);
      else if (this.#state.name === "closed") entry.reject(new HubError("the client was closed, perhaps after it was published"));
      else {
        this.#queue.unshift(entry); // under the same key, after a while or with the next connection; nothing may overtake it
        wire.busy += WINDOW;
        wire.later(() => this.#freed(wire, WINDOW), (error.hintMs ?? 0) + backoffMs(this.#pauses++));
      }
    }
    this.#freed(wire, 1);
  }
  #freed(wire, places) {
    wire.busy -= places;
    this.#flush();
  }
}
