/* hub.js: a client of the hub for web pages and Node, one ES module without dependencies.

     import { Hub } from "/hub.js";
     const hub = new Hub();
     const room = hub.subscribe("chat:lobby");
     room.on("publication", ({ data }) => show(data));
     room.on("lost", () => reload());          // something is missing that can't be had any more
     hub.open();
     await hub.publish("chat:lobby", { text: "hi" });

   Does: connect by WebSocket, else by an event stream, else by polls; come back by itself and go on in each channel where
   it was, also over another wire; keep what is published meanwhile, within a bound.
   Does not: acknowledge mailboxes, ask for history or call server code; an SDK of Centrifugo's does.
   Served by: hub/httpd.py at /hub.js. The wires: hub/session.py, hub/transports/sse.py, hub/transports/longpoll.py.
   Never break: the position of a channel never claims a publication that has not been passed on; after `close` there is
   no timer, listener, socket or request left; a listener that throws hurts nobody else.
*/

const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 20_000;
/** A connection that lived this long was a good one: the next loss begins the backoff, and the choice of wire, anew. */
const STABLE_MS = 30_000;
/** From the beginning of an attempt to the hub's first words. */
const CONNECT_MS = 10_000;
/** How much later than announced the hub's ping, or its answer to a poll, may come. */
const PING_GRACE_MS = 10_000;
/** So often in a row a wire that has worked before may fail to open until the next one is tried. */
const TRIES = 3;
/** Below the 30 to 60 s at which proxies give up on a silent answer. */
const POLL_WAIT_S = 25;
/** Below the hub's own limit (client.commands_per_message, 256). */
const COMMANDS_PER_MESSAGE = 100;
/** Publications over WebSocket that wait for their answers at a time; far below client.pending_commands. */
const WINDOW = 16;
/** Of one event of an event stream. The hub's own are bounded; this is for what is no hub. */
const EVENT_LETTERS = 16_777_216;
/** Close codes from here on mean: don't come back. */
const FINAL_CODE = 3500;
/** Codes of the hub (hub/errors.py). */
const TOKEN_EXPIRED = 109;
const NOT_AVAILABLE = 108;
const CONNECTION_EXPIRED = 3005;
const INVALID_TOKEN = 3500;
const RESUBSCRIBE_CODE = 2500;
/** Longer cursors name only the newest generation of each epoch (hub/cursor.py). */
const CURSOR_LETTERS = 4096;

/** Full jitter: anything up to the doubled wait, so that clients lost together don't come back together.
    @param {number} attempt */
const backoffMs = (attempt) => Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);

const now = () => performance.now();

/** @typedef {"websocket" | "sse" | "poll"} WireName */
/** @typedef {{epoch: string, offset: number}} Position  behind the publication `offset` of a `stream` channel */
/** @typedef {{user?: string, client?: string}} ClientInfo */
/** @typedef {{data: any, offset?: number, info?: ClientInfo, tags?: Record<string, string>}} Publication */
/** What the hub is doing. retryAt: in ms of performance.now().
    @typedef {{name: "connecting", wire: WireName}
      | {name: "connected", wire: WireName, client?: string, version?: string}
      | {name: "waiting", code: number, reason: string, retryAt: number}
      | {name: "closed", code: number, reason: string}} State */
/** `lost`: what is missing can't be had any more. `error`: the hub does not grant this subscription; it has ended.
    `join` and `leave` come over WebSocket, and over event streams where all channels ask for them; never over polls.
    @typedef {{publication: Publication, join: ClientInfo, leave: ClientInfo, lost: null, error: HubError}} ChannelEvents */
/** `notice`: to all connections of this user. `dropped`: so many publications of `none` channels were left out, as we
    read too slowly.
    @typedef {{state: State, notice: any, dropped: number}} HubEvents */
/** `url`: of the hub, such as "https://hub.example.com"; the page's own where it is left out.
    `wires`: those to use, the best first. `token`: one, or what gets a fresh one; it is asked again once one has expired.
    `queue`: publications that may wait for a connection.
    @typedef {{url?: string, wires?: WireName[], token?: string | (() => string | Promise<string>), queue?: number}} Options */
/** `joinLeave`: be told who comes and goes. `since`: go on from there, such as a `position` from before a reload.
    @typedef {{joinLeave?: boolean, since?: Position | null}} SubscribeOptions */
/** How a wire ended. spoke: by words of the hub, so the wire itself is good. hintMs: the hub wants us to wait so long.
    @typedef {{code?: number, reason?: string, final?: boolean, spoke?: boolean, hintMs?: number}} End */
/** @typedef {{channel: string, data: any, key: string, posted: boolean,
      resolve: (receipt: any) => void, reject: (error: Error) => void}} Entry */
/** What a wire needs of its hub, and tells it.
    @typedef {{url: string, token: string, readers: Map<string, Reader>, opened: (info: object) => void,
      ended: (end: End) => void, refused: (reader: Reader, error: HubError) => void,
      emit: <K extends keyof HubEvents>(name: K, value: HubEvents[K]) => void}} Link */

/** The hub's answer to what it did not do, or our own (code 0). temporary: trying again may help. */
export class HubError extends Error {
  /** @param {string} message @param {{code?: number, temporary?: boolean, status?: number, hintMs?: number}} [more] */
  constructor(message, { code = 0, temporary = false, status = 0, hintMs = 0 } = {}) {
    super(message);
    this.name = "HubError";
    this.code = code;
    this.temporary = temporary;
    /** Of an answer over HTTP; 0 for none. */
    this.status = status;
    this.hintMs = hintMs;
  }
}

const lostError = () => new HubError("the connection was lost, perhaps after it was published", { temporary: true });

/** Listeners by the event's name.
    @template {object} Events */
class Emitter {
  /** @type {Map<keyof Events, Set<(value: any) => void>>} */
  #listeners = new Map();

  /** Call `listener` for each event `name`; returns what takes it off again.
      @template {keyof Events} K
      @param {K} name
      @param {(value: Events[K]) => void} listener
      @returns {() => void} */
  on(name, listener) {
    const all = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, all.add(listener));
    return () => void all.delete(listener);
  }

  /** @template {keyof Events} K
      @param {K} name
      @param {Events[K]} value */
  emit(name, value) {
    for (const listener of this.#listeners.get(name) ?? []) {
      try {
        listener(value);
      } catch (error) {
        // Reported as if the browser had called it, once our own work is done.
        queueMicrotask(() => { throw error; });
      }
    }
  }
}

/** One channel that is subscribed to; what `Hub.subscribe` gives.
    @extends {Emitter<ChannelEvents>} */
export class Subscription extends Emitter {
  #reader;
  #leave;

  /** @param {Reader} reader @param {() => void} leave */
  constructor(reader, leave) {
    super();
    this.#reader = reader;
    this.#leave = leave;
  }

  get channel() {
    return this.#reader.channel;
  }

  /** Where we are in a `stream` channel, to be kept for `since`; null: in no such channel, or not yet.
      @returns {Position | null} */
  get position() {
    return this.#reader.position && { ...this.#reader.position };
  }

  unsubscribe() {
    this.#leave();
  }
}

/** Where we are in one channel, whatever wire brings it; passes on what is new. */
class Reader {
  /** What a wire may go on from. Behind #seen where event streams name their cursor only now and then.
      @type {Position | null} */
  position = null;
  /** Stands for the value that we have of a `latest` channel; polls bring it. */
  mark = "";
  /** It is known to be a `latest` channel. */
  latest = false;
  #seen = 0;
  #key = "";

  /** @param {string} channel @param {SubscribeOptions} options @param {() => void} leave */
  constructor(channel, { joinLeave = false, since = null }, leave) {
    this.channel = channel;
    this.joinLeave = joinLeave;
    this.subscription = new Subscription(this, leave);
    if (since) this.move(since.epoch, since.offset);
  }

  /** What stands for the channel in a cursor. */
  get key() {
    return (this.#key ||= cursorKey(this.channel));
  }

  /** @param {Publication} pub */
  take(pub) {
    if (pub.offset) {
      if (pub.offset <= this.#seen) return; // sent again, behind a cursor of before
      this.#seen = pub.offset;
    }
    this.subscription.emit("publication", pub);
  }

  /** @param {string} epoch @param {number} offset */
  move(epoch, offset) {
    this.position = { epoch, offset };
    this.#seen = Math.max(this.#seen, offset);
  }

  lose() {
    this.#seen = 0;
    this.position = null;
    this.subscription.emit("lost", null);
  }
}

// Cursors: positions in several channels as one text, as hub/cursor.py writes it. hub.js comes from the hub that it talks
// to, so it may know; with cursors of another version it begins anew.

/** @param {Iterable<Reader>} readers */
function encodeCursor(readers) {
  /** @param {(epoch: string) => string} clip */
  const text = (clip) => {
    const fields = [];
    for (const { key, position, mark } of readers) {
      if (position?.epoch) fields.push(key, position.offset, clip(position.epoch));
      else if (mark) fields.push(key, "v", mark);
    }
    return fields.length ? ["1", ...fields].join("~") : "";
  };
  const whole = text((epoch) => epoch);
  return whole.length > CURSOR_LETTERS ? text((epoch) => epoch.slice(epoch.lastIndexOf(",") + 1)) : whole;
}

/** @param {string} text @param {Iterable<Reader>} readers */
function applyCursor(text, readers) {
  const [version, ...fields] = text.split("~");
  if (version !== "1") return;
  const byKey = new Map();
  for (const reader of readers) byKey.set(reader.key, reader);
  for (let i = 0; i + 2 < fields.length; i += 3) {
    const reader = byKey.get(fields[i]);
    if (!reader) continue;
    if (fields[i + 1] === "v") reader.mark = fields[i + 2];
    else reader.move(fields[i + 2], Number(fields[i + 1]));
  }
}

const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => [...row].map((digit) => parseInt(digit, 16)));
const MIXED = ["048c", "159d", "26ae", "37bf", "05af", "16bc", "278d", "349e"].map((row) => [...row].map((digit) => parseInt(digit, 16)));

/** What stands for a channel in a cursor: five bytes of BLAKE2b (RFC 7693) as base64. Browsers bring no such hash that is
    there on pages without TLS as well.
    @param {string} channel */
export function cursorKey(channel) {
  const bytes = new TextEncoder().encode(channel);
  const h = new BigUint64Array(IV); // wraps at 64 bits by itself
  h[0] ^= 0x01010005n;
  let end = 0;
  do {
    const block = new DataView(new ArrayBuffer(128));
    bytes.subarray(end, end + 128).forEach((byte, i) => block.setUint8(i, byte));
    end = Math.min(end + 128, bytes.length);
    const v = new BigUint64Array([...h, ...IV]);
    v[12] ^= BigInt(end);
    if (end === bytes.length) v[14] = ~v[14];
    for (let round = 0; round < 12; round += 1) {
      MIXED.forEach(([a, b, c, d], i) => {
        /** @param {number} n */
        const word = (n) => block.getBigUint64(8 * SIGMA[round % 10][2 * i + n], true);
        /** @param {number} to @param {number} from @param {bigint} bits */
        const rotate = (to, from, bits) => {
          const x = v[to] ^ v[from];
          v[to] = (x >> bits) | (x << (64n - bits));
        };
        v[a] += v[b] + word(0);
        rotate(d, a, 32n);
        v[c] += v[d];
        rotate(b, c, 24n);
        v[a] += v[b] + word(1);
        rotate(d, a, 16n);
        v[c] += v[d];
        rotate(b, c, 63n);
      });
    }
    for (let i = 0; i < 8; i += 1) h[i] ^= v[i] ^ v[i + 8];
  } while (end < bytes.length);
  const digest = [0n, 8n, 16n, 24n, 32n].map((shift) => Number((h[0] >> shift) & 255n));
  return btoa(String.fromCharCode(...digest)).slice(0, 7).replaceAll("+", "-").replaceAll("/", "_");
}

// The wires.

/** One connection, from its beginning to its end; another one begins anew. */
class Wire {
  /** How many publications may wait for their answers. */
  window = 1;
  /** How many do. */
  busy = 0;
  over = false;
  /** Ends what the wire has asked for over HTTP. */
  aborter = new AbortController();
  #heardAt = now();
  #silenceMs = 0;
  /** @type {any} */
  #watchdog = 0;

  /** @param {Link} link */
  constructor(link) {
    this.link = link;
  }

  /** From now on the hub may be silent for `ms`; 0: for ever.
      @param {number} ms */
  expect(ms) {
    this.#silenceMs = ms;
    this.heard();
    this.check();
  }

  heard() {
    this.#heardAt = now();
  }

  /** Look whether the hub has been silent for too long. Browsers hold back the timers of hidden pages and sleeping machines. */
  check() {
    clearTimeout(this.#watchdog);
    if (!this.#silenceMs || this.over) return;
    const leftMs = this.#heardAt + this.#silenceMs - now();
    if (leftMs > 0) this.#watchdog = setTimeout(() => this.check(), leftMs);
    else this.end({ reason: "the hub fell silent" });
  }

  /** @param {End} end */
  end(end) {
    if (this.over) return;
    this.close();
    this.link.ended(end);
  }

  /** Leave nothing behind, and say nothing more. */
  close() {
    this.over = true;
    clearTimeout(this.#watchdog);
    this.aborter.abort();
    this.shut();
  }

  shut() {}
}

/** The native protocol, JSON over WebSocket (https://centrifugal.dev/docs/transports/client_protocol). */
class WebSocketWire extends Wire {
  window = WINDOW;
  /** @type {WebSocket | null} */
  #socket = null;
  /** By the command's id. @type {Map<number, {method: string, resolve: (result: any) => void, reject: (error: Error) => void}>} */
  #asked = new Map();
  /** Commands of this turn. @type {string[]} */
  #lines = [];
  #lastId = 0;
  #connected = false;
  /** Whose subscription failed for the moment. @type {Set<Reader>} */
  #again = new Set();
  /** @type {any} */
  #againTimer = 0;
  #failures = 0;

  /** @param {Link} link */
  constructor(link) {
    super(link);
    this.expect(CONNECT_MS);
    try {
      const socket = (this.#socket = new WebSocket(`${link.url.replace(/^http/, "ws")}/connection/websocket`));
      socket.onopen = () => this.#greet();
      socket.onmessage = ({ data }) => {
        try {
          this.#receive(data);
        } catch (error) {
          this.end({ reason: `not the hub's protocol: ${error}` });
        }
      };
      socket.onerror = () => {}; // `close` follows, and says more
      socket.onclose = ({ code, reason }) => this.end({ code, reason, final: code >= FINAL_CODE, spoke: code >= 3000 });
    } catch (error) {
      // The page may not open one at all, by its own policy.
      queueMicrotask(() => this.end({ reason: String(error) }));
    }
  }

  shut() {
    const socket = this.#socket;
    clearTimeout(this.#againTimer);
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(); // where it is half dead the browser may take long over it; nobody listens any more
    }
    for (const { reject } of this.#asked.values()) reject(lostError());
    this.#asked.clear();
  }

  /** @param {Reader} reader */
  enter(reader) {
    if (this.#connected) this.#join(reader);
  }

  /** @param {Reader} reader */
  leave(reader) {
    this.#again.delete(reader);
    // Whatever the answer is: we are not in it any more.
    if (this.#connected) this.ask("unsubscribe", { channel: reader.channel }).catch(() => {});
  }

  /** @param {Entry} entry */
  publish(entry) {
    // What may have been published over HTTP can be repeated only there, under its key.
    return entry.posted ? post(this.link, entry, this.aborter.signal) : this.ask("publish", { channel: entry.channel, data: entry.data });
  }

  /** The result of a command. There is no time limit of its own: a hub that lives answers, and one that doesn't is found out
      by its missing pings.
      @param {string} method
      @param {object} params
      @returns {Promise<any>} */
  ask(method, params) {
    if (this.over) return Promise.reject(lostError());
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId;
      this.#asked.set(id, { method, resolve, reject });
      this.#write(JSON.stringify({ id, [method]: params }));
    });
  }

  /** What one turn writes leaves as one message: twenty subscriptions are one frame.
      @param {string} line */
  #write(line) {
    if (this.#lines.push(line) > 1) return;
    queueMicrotask(() => {
      while (this.#lines.length && !this.over) this.#socket?.send(this.#lines.splice(0, COMMANDS_PER_MESSAGE).join("\n"));
    });
  }

  async #greet() {
    try {
      const { client, version, ping } = await this.ask("connect", { token: this.link.token, name: "hub.js" });
      if (this.over) return;
      this.#connected = true;
      this.expect(ping ? ping * 1000 + PING_GRACE_MS : 0);
      for (const reader of this.link.readers.values()) this.#join(reader);
      this.link.opened({ client, version });
    } catch (error) {
      const { code, message, temporary } = /** @type {HubError} */ (error);
      this.end({ code, reason: message, final: !temporary && code !== TOKEN_EXPIRED, spoke: true });
    }
  }

  /** @param {Reader} reader @returns {Promise<void>} */
  async #join(reader) {
    const { channel, position, latest, joinLeave } = reader;
    const recover = latest || position !== null;
    try {
      const result = await this.ask("subscribe", { channel, ...(joinLeave && { join_leave: true }), ...(recover && { recover, ...position }) });
      const isOurs = () => this.link.readers.get(channel) === reader && !this.over;
      if (!isOurs()) return;
      if (result.recoverable && !result.positioned && !recover) {
        // Its newest value comes to who comes back, so that is what we do.
        reader.latest = true;
        this.leave(reader);
        return this.#join(reader);
      }
      if (result.was_recovering && !result.recovered) reader.lose();
      // Each listener may close the hub, or leave the channel.
      for (const pub of result.publications ?? []) if (isOurs()) reader.take(pub);
      if (result.positioned && isOurs()) reader.move(result.epoch, result.offset ?? 0);
    } catch (error) {
      if (this.link.readers.get(channel) === reader && !this.over) this.#refused(reader, /** @type {HubError} */ (error));
    }
  }

  /** @param {Reader} reader @param {HubError} error */
  #refused(reader, error) {
    if (!error.temporary) return this.link.refused(reader, error);
    this.#again.add(reader);
    if (this.#again.size > 1) return;
    this.#againTimer = setTimeout(() => {
      const again = [...this.#again];
      this.#again.clear();
      for (const one of again) this.#join(one);
    }, backoffMs(this.#failures++));
  }

  /** @param {string} text */
  #receive(text) {
    this.heard();
    for (const line of text.split("\n")) {
      if (!line || this.over) continue;
      const message = JSON.parse(line);
      if (message.push) this.#push(message.push);
      else if (message.id) this.#answer(message);
      else this.#write("{}");
    }
  }

  /** @param {any} reply */
  #answer(reply) {
    const asked = this.#asked.get(reply.id);
    this.#asked.delete(reply.id);
    if (reply.error) asked?.reject(new HubError(reply.error.message, reply.error));
    else asked?.resolve(reply[asked.method] ?? {});
  }

  /** @param {any} push */
  #push({ channel, pub, join, leave, unsubscribe, message }) {
    if (message) return this.#message(message.data);
    const reader = this.link.readers.get(channel);
    if (!reader) return;
    if (pub) {
      reader.take(pub);
      if (pub.offset && reader.position) reader.move(reader.position.epoch, pub.offset);
    } else if (join) reader.subscription.emit("join", join.info);
    else if (leave) reader.subscription.emit("leave", leave.info);
    else if (unsubscribe?.code >= RESUBSCRIBE_CODE) this.#join(reader);
    else if (unsubscribe) this.link.refused(reader, new HubError(unsubscribe.reason, { code: unsubscribe.code }));
  }

  /** @param {any} data */
  #message(data) {
    const dropped = data?.hub?.dropped;
    if (dropped) this.link.emit("dropped", dropped);
    else this.link.emit("notice", data);
  }
}

/** @param {Link} link @returns {Record<string, string>} */
const authorization = ({ token }) => (token ? { Authorization: `Bearer ${token}` } : {});

/** What an answer that is not good says. Without JSON it is not the hub's, but that of a proxy: status, but code 0.
    @param {Response} response */
async function failure(response) {
  const { status } = response;
  const hintMs = 1000 * Number(response.headers.get("Retry-After")) || 0;
  const error = (await response.json().catch(() => null))?.error;
  return new HubError(error?.message ?? `HTTP ${status}`, {
    code: error?.code, temporary: error?.temporary ?? [429, 502, 503, 504].includes(status), status, hintMs,
  });
}

/** Publish over HTTP; may be repeated with the same entry.
    @param {Link} link
    @param {Entry} entry
    @param {AbortSignal} signal */
async function post(link, entry, signal) {
  entry.posted = true;
  const { channel, data, key } = entry;
  // As text/plain, which it is for want of a type, a page of another origin needs no preflight.
  const body = JSON.stringify({ channel, data, ...(key && { idempotency_key: key }) });
  const response = await fetch(`${link.url}/publish`, { method: "POST", headers: { ...authorization(link), "Content-Type": "application/json" }, body, signal });
  if (response.ok) return response.json();
  const error = await failure(response);
  if (error.code !== NOT_AVAILABLE || !entry.key) throw error;
  // `latest` channels take no key: to repeat a newest value changes nothing.
  entry.key = "";
  return post(link, entry, signal);
}

/** What event streams and polls have in common: requests that name all channels, and where we are in them. */
class RequestWire extends Wire {
  /** Of the request that listens now. @type {AbortController | null} */
  #turn = null;
  #due = false;
  hintMs = 0;

  /** @param {Link} link */
  constructor(link) {
    super(link);
    this.enter();
  }

  shut() {
    this.#turn?.abort();
  }

  /** Begin a request with the channels that there are now; once for all changes of a turn. */
  enter() {
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(() => {
      this.#due = false;
      if (!this.over) this.#run();
    });
  }

  leave() {
    this.enter();
  }

  /** @param {Entry} entry */
  async publish(entry) {
    try {
      return await post(this.link, entry, this.aborter.signal);
    } catch (error) {
      if (error instanceof HubError && error.code === TOKEN_EXPIRED) {
        error.temporary = true; // with a fresh token
        this.#fail(error);
      }
      throw error;
    }
  }

  async #run() {
    this.#turn?.abort();
    const turn = (this.#turn = new AbortController());
    try {
      if (this.link.readers.size) return await this.listen(turn.signal);
      this.expect(0);
      this.link.opened({});
    } catch (error) {
      if (this.over || turn !== this.#turn) return;
      await this.#failed(error).catch((worse) => this.#fail(worse));
    }
  }

  /** @param {AbortSignal} signal @returns {Promise<void>} */
  async listen(signal) {
    throw new Error(`${this.constructor.name} listens to nothing`);
  }

  /** @param {AbortSignal} signal @param {string} path @param {Iterable<Reader>} readers @param {Record<string, string>} [more] */
  async request(signal, path, readers, more = {}) {
    const query = new URLSearchParams(more);
    for (const { channel } of readers) query.append("channel", channel);
    const cursor = encodeCursor(readers);
    const headers = { ...authorization(this.link), ...(cursor && { "Last-Event-ID": cursor }) };
    const response = await fetch(`${this.link.url}${path}?${query}`, { headers, signal, cache: "no-store" });
    if (!response.ok) throw await failure(response);
    return response;
  }

  /** @param {unknown} error */
  #fail(error) {
    if (!(error instanceof HubError)) return this.end({ reason: String(error), hintMs: this.hintMs });
    const { code, message, status, temporary, hintMs } = error;
    if (status === 401 && code !== TOKEN_EXPIRED) return this.end({ code: INVALID_TOKEN, reason: message, final: true });
    this.end({ code, reason: message, hintMs, spoke: code > 0, final: code > 0 && !temporary && status !== 401 });
  }

  /** @param {unknown} error */
  async #failed(error) {
    const ofChannel = error instanceof HubError && error.code && !error.temporary && error.status !== 401;
    if (!ofChannel) return this.#fail(error);
    // One channel that is not granted spoils the request of all, and the answer does not say which one it is.
    const readers = [...this.link.readers.values()];
    const refused = readers.length === 1 ? [{ reader: readers[0], error }] : await this.#probe(readers);
    if (!refused.length) return this.#fail(error);
    for (const one of refused) this.link.refused(one.reader, one.error);
    this.enter();
  }

  /** @param {Reader[]} readers */
  async #probe(readers) {
    const refused = [];
    for (const reader of readers) {
      try {
        this.expect(CONNECT_MS);
        await this.request(this.aborter.signal, "/poll", [reader], { wait: "0", join_leave: String(reader.joinLeave) });
      } catch (error) {
        if (!(error instanceof HubError) || !error.code || error.temporary || error.status === 401) throw error;
        refused.push({ reader, error });
      }
    }
    return refused;
  }

  /** @param {any} message */
  take({ channel, pub }) {
    this.link.readers.get(channel)?.take(pub);
  }

  /** @param {string} cursor */
  locate(cursor) {
    applyCursor(cursor, this.link.readers.values());
  }
}

/** Event streams (hub/eventstream.py), read by fetch: EventSource sends no token and tells of no status. */
class SseWire extends RequestWire {
  /** @param {AbortSignal} signal */
  async listen(signal) {
    this.expect(CONNECT_MS);
    const readers = [...this.link.readers.values()];
    const response = await this.request(signal, "/sse", readers, { join_leave: String(readers.every((one) => one.joinLeave)) });
    const stream = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
    const decoder = new TextDecoder();
    for (let text = ""; ; ) {
      const { done, value } = await stream.read();
      if (signal.aborted) return;
      if (done) throw new Error("the event stream ended");
      this.heard();
      const blocks = (text + decoder.decode(value, { stream: true })).split("\n\n");
      text = blocks.pop() ?? "";
      if (text.length > EVENT_LETTERS) throw new Error("an event is too long");
      for (const block of blocks) {
        this.#event(block);
        if (this.over || signal.aborted) return;
      }
    }
  }

  /** @param {string} block */
  #event(block) {
    /** @type {Record<string, string>} */
    const fields = {};
    for (const line of block.split("\n")) {
      const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
      if (name) fields[name] = value; // the hub's data is one line of JSON
    }
    if (fields.retry) this.hintMs = Number(fields.retry);
    if (fields.data !== undefined) this.#dispatch(fields.event ?? "message", JSON.parse(fields.data));
    // Behind the publication that it claims.
    if (fields.id) this.locate(fields.id);
  }

  /** @param {string} event @param {any} data */
  #dispatch(event, data) {
    const reader = this.link.readers.get(data.channel);
    if (event === "message") this.take(data);
    else if (event === "join") reader?.subscription.emit("join", data.join.info);
    else if (event === "leave") reader?.subscription.emit("leave", data.leave.info);
    else if (event === "lost" && data.dropped) this.link.emit("dropped", data.dropped);
    else if (event === "lost") reader?.lose();
    else if (event === "notice") this.link.emit("notice", data.data);
    else if (event === "closed") this.end({ code: data.code, reason: data.reason, final: !data.reconnect, spoke: true, hintMs: this.hintMs });
    else if (event === "open") {
      this.expect(data.ping * 1000 + PING_GRACE_MS);
      this.link.opened({ client: data.client });
    }
  }
}

/** One request at a time (hub/transports/longpoll.py). */
class PollWire extends RequestWire {
  /** @param {AbortSignal} signal */
  async listen(signal) {
    // The first answer comes at once, and tells where we are from now on.
    for (let waitS = 0; ; waitS = POLL_WAIT_S) {
      this.expect(waitS * 1000 + PING_GRACE_MS);
      const response = await this.request(signal, "/poll", [...this.link.readers.values()], { wait: String(waitS) });
      const body = response.status === 200 ? await response.json() : {};
      if (signal.aborted) return;
      this.link.opened({});
      for (const channel of body.lost ?? []) this.link.readers.get(channel)?.lose();
      for (const message of body.messages ?? []) if (!this.over) this.take(message);
      if (this.over) return; // perhaps in the middle of the messages
      const cursor = response.headers.get("Hub-Cursor");
      if (cursor) this.locate(cursor);
      if (signal.aborted) return;
    }
  }
}

/** @type {Record<WireName, new (link: Link) => WebSocketWire | SseWire | PollWire>} */
const WIRES = { websocket: WebSocketWire, sse: SseWire, poll: PollWire };

// The client.

/** A client that stays connected from `open` to `close`, or until the hub tells it not to come back.
    @extends {Emitter<HubEvents>} */
export class Hub extends Emitter {
  #url;
  #wires;
  #token;
  #most;
  /** @type {Map<string, Reader>} */
  #readers = new Map();
  /** Publications that have not been sent. @type {Entry[]} */
  #queue = [];
  /** @type {State} */
  #state = { name: "closed", code: 0, reason: "not opened" };
  /** @type {WebSocketWire | SseWire | PollWire | null} */
  #wire = null;
  /** Stands for one attempt; what belongs to an older one is not listened to. */
  #turn = {};
  /** Which of the wires is used; the one that has opened last; how often it has failed to since. */
  #index = 0;
  #proven = -1;
  #failures = 0;
  #attempt = 0;
  /** @type {string | null} */
  #tokenNow = null;
  #offline = false;
  /** performance.now() of the hub's first words; and before which it does not want us back. */
  #connectedAt = 0;
  #notBefore = 0;
  /** Until the next attempt, or for the token of this one; until the next try to publish. @type {any} */
  #timer = 0;
  /** @type {any} */
  #pause = 0;
  #pauses = 0;
  #listener = { handleEvent: (/** @type {Event} */ event) => this.#onEvent(event.type) };

  /** @param {Options} [options] */
  constructor({ url = globalThis.location?.origin, wires = ["websocket", "sse", "poll"], token = "", queue = 100 } = {}) {
    super();
    if (!url) throw new TypeError("url is missing, and there is no page that could tell");
    const unknown = wires.find((name) => !(name in WIRES));
    if (!wires.length || unknown) throw new TypeError(`wires: found ${unknown ?? "none"}; allowed: ${Object.keys(WIRES)}`);
    this.#url = url.replace(/\/$/, "");
    this.#wires = [...wires];
    this.#token = token;
    this.#most = queue;
  }

  get state() {
    return this.#state;
  }

  /** Connect, and stay connected. Nothing happens where it is open already. */
  open() {
    if (this.#state.name !== "closed") return;
    this.#offline = false;
    this.#index = this.#attempt = this.#failures = this.#notBefore = 0;
    this.#proven = -1;
    globalThis.addEventListener?.("online", this.#listener);
    globalThis.addEventListener?.("offline", this.#listener);
    globalThis.document?.addEventListener("visibilitychange", this.#listener);
    this.#connect();
  }

  /** End the connection and what waits for it; subscriptions stay, for another `open`. */
  close() {
    if (this.#state.name !== "closed") this.#stop(0, "closed");
  }

  /** Be in a channel, now and after each reconnect, until `unsubscribe`; the same object for a channel that we are in.
      @param {string} channel
      @param {SubscribeOptions} [options] */
  subscribe(channel, options = {}) {
    let reader = this.#readers.get(channel);
    if (!reader) {
      const made = (reader = new Reader(channel, options, () => this.#drop(made)));
      this.#readers.set(channel, made);
      this.#wire?.enter(made);
    }
    return reader.subscription;
  }

  /** Publish data; without a connection it waits for one. Resolves when the hub has taken it. Rejects with a HubError: the
      hub refuses, too many wait, the client was closed, or a WebSocket was lost before the answer came; by the last two it
      may have been published all the same.
      @param {string} channel
      @param {any} data
      @returns {Promise<any>} */
  publish(channel, data) {
    if (this.#state.name === "closed") return Promise.reject(new HubError("the client is closed"));
    if (this.#queue.length >= this.#most) return Promise.reject(new HubError(`${this.#most} publications wait already`, { temporary: true }));
    return new Promise((resolve, reject) => {
      const random = crypto.getRandomValues(new Uint8Array(16));
      const key = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
      this.#queue.push({ channel, data, key, posted: false, resolve, reject });
      this.#flush();
    });
  }

  /** Who is in a channel, by the connection's id; only over WebSocket.
      @param {string} channel
      @returns {Promise<Record<string, ClientInfo>>} */
  async presence(channel) {
    if (!(this.#wire instanceof WebSocketWire) || this.#state.name !== "connected") {
      throw new HubError("presence needs a WebSocket that is connected", { code: NOT_AVAILABLE, temporary: true });
    }
    return (await this.#wire.ask("presence", { channel })).presence ?? {};
  }

  // Connections.

  async #connect() {
    clearTimeout(this.#timer);
    const turn = (this.#turn = {});
    const name = this.#wires[this.#index];
    this.#show({ name: "connecting", wire: name });
    if (turn !== this.#turn) return; // a listener has closed us
    if (typeof this.#token === "function") {
      this.#timer = setTimeout(() => this.#ended({ reason: "no token came in time", spoke: true }, turn), CONNECT_MS);
      try {
        this.#tokenNow ??= await this.#token();
      } catch (error) {
        this.#ended({ reason: `no token: ${error}`, spoke: true }, turn);
      }
      if (turn !== this.#turn) return;
      clearTimeout(this.#timer);
    } else this.#tokenNow = this.#token;
    this.#connectedAt = 0;
    this.#wire = new WIRES[name]({
      url: this.#url,
      token: this.#tokenNow ?? "",
      readers: this.#readers,
      opened: (info) => this.#opened(name, info),
      ended: (end) => this.#ended(end, turn),
      refused: (reader, error) => this.#refused(reader, error),
      emit: (event, value) => this.emit(event, value),
    });
  }

  /** @param {WireName} wire @param {object} info */
  #opened(wire, info) {
    if (this.#connectedAt) return; // a stream with other channels, or the next poll
    this.#connectedAt = now();
    this.#proven = this.#index;
    this.#failures = 0;
    this.#show({ name: "connected", wire, ...info });
    this.#flush();
  }

  /** @param {End} end @param {object} turn */
  #ended({ code = 0, reason = "", final = false, spoke = false, hintMs = 0 }, turn) {
    if (turn !== this.#turn) return;
    this.#abandon();
    if (code === TOKEN_EXPIRED || code === CONNECTION_EXPIRED) {
      this.#tokenNow = null;
      final ||= code === TOKEN_EXPIRED && typeof this.#token !== "function";
    }
    if (final) return this.#stop(code, reason);
    if (this.#connectedAt && now() - this.#connectedAt >= STABLE_MS) {
      this.#attempt = 0;
      if (this.#index) this.#beginAnew(); // what kept us from the better wire may be over
    }
    if (!this.#connectedAt && !spoke && this.#isUseless()) return this.#connect();
    const delayMs = hintMs + backoffMs(this.#attempt++);
    this.#notBefore = now() + hintMs;
    this.#timer = setTimeout(() => this.#connect(), delayMs);
    this.#show({ name: "waiting", code, reason, retryAt: now() + delayMs });
  }

  /** The wire has failed to open. Goes on to the next one; whether that is to be tried at once, as it is not the first again. */
  #isUseless() {
    this.#failures += 1;
    if (this.#failures < (this.#proven === this.#index ? TRIES : 1)) return false;
    this.#failures = 0;
    this.#proven = -1;
    this.#index = (this.#index + 1) % this.#wires.length;
    return this.#index > 0;
  }

  #beginAnew() {
    this.#index = this.#failures = 0;
    this.#proven = -1;
  }

  /** Leave the attempt or the connection that there is. */
  #abandon() {
    this.#turn = {};
    clearTimeout(this.#timer);
    clearTimeout(this.#pause);
    this.#pause = 0;
    const wire = this.#wire;
    this.#wire = null;
    wire?.close();
  }

  /** @param {number} code @param {string} reason */
  #stop(code, reason) {
    this.#abandon();
    globalThis.removeEventListener?.("online", this.#listener);
    globalThis.removeEventListener?.("offline", this.#listener);
    globalThis.document?.removeEventListener("visibilitychange", this.#listener);
    for (const { reject } of this.#queue.splice(0)) reject(new HubError(`the client was closed: ${reason}`, { code }));
    this.#show({ name: "closed", code, reason });
  }

  /** @param {State} state */
  #show(state) {
    this.#state = state;
    this.emit("state", state);
  }

  // What the browser tells.

  /** @param {string} type */
  #onEvent(type) {
    const waiting = this.#state.name === "waiting";
    if (type === "offline") this.#offline = true;
    else if (type === "online" && (waiting || this.#offline)) {
      // The network may be another one: what was connected is perhaps dead, and what was blocked perhaps not.
      this.#offline = false;
      this.#abandon();
      this.#beginAnew();
      this.#hurry();
    } else if (type === "visibilitychange" && document.visibilityState === "visible") {
      if (waiting) this.#hurry();
      else this.#wire?.check();
    }
  }

  /** Connect now, but not before the hub wants us back. */
  #hurry() {
    const leftMs = this.#notBefore - now();
    clearTimeout(this.#timer);
    if (leftMs > 0) this.#timer = setTimeout(() => this.#connect(), leftMs);
    else this.#connect();
  }

  // Channels and publications.

  /** @param {Reader} reader */
  #drop(reader) {
    if (this.#readers.get(reader.channel) !== reader) return;
    this.#readers.delete(reader.channel);
    this.#wire?.leave(reader);
  }

  /** @param {Reader} reader @param {HubError} error */
  #refused(reader, error) {
    if (this.#readers.get(reader.channel) !== reader) return;
    this.#readers.delete(reader.channel);
    reader.subscription.emit("error", error);
  }

  /** Send what waits, in order. */
  #flush() {
    const wire = this.#wire;
    while (wire && this.#state.name === "connected" && !this.#pause && wire.busy < wire.window && this.#queue.length) {
      this.#send(wire, /** @type {Entry} */ (this.#queue.shift()));
    }
  }

  /** @param {WebSocketWire | SseWire | PollWire} wire @param {Entry} entry */
  async #send(wire, entry) {
    wire.busy += 1;
    try {
      entry.resolve(await wire.publish(entry));
      this.#pauses = 0;
    } catch (error) {
      const isHubs = error instanceof HubError;
      if (this.#state.name === "closed") entry.reject(isHubs ? error : new HubError("the client was closed, perhaps after it was published"));
      else if (entry.posted && (!isHubs || error.temporary)) this.#sendLater(entry, error);
      else entry.reject(/** @type {Error} */ (error));
    }
    wire.busy -= 1;
    this.#flush();
  }

  /** It goes out first, under the same key, after a while or with the next connection.
      @param {Entry} entry
      @param {unknown} error */
  #sendLater(entry, error) {
    this.#queue.unshift(entry);
    clearTimeout(this.#pause);
    this.#pause = 0;
    if (this.#state.name !== "connected") return;
    const hintMs = error instanceof HubError ? error.hintMs : 0;
    this.#pause = setTimeout(() => {
      this.#pause = 0;
      this.#flush();
    }, hintMs + backoffMs(this.#pauses++));
  }
}
