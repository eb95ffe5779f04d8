/* The demo page: live prices and a chat, over the hub's native protocol.

   Does: connect and stay connected (Client), show the newest price of each symbol (Board), send and show messages (Chat).
   Does not: need a build step or a library, or ask any server but the one that the page came from.
   Served by: hub/httpd.py, where `demo = true`; its channels are those of config/demo.toml.
   Never break: what others wrote reaches the page as text (textContent, Text.data), never as HTML.
*/

/** The symbols of config/demo.toml, [ticker]; a test holds the two lists together. */
const SYMBOLS = [
  "ACME", "APEX", "ATLAS", "BOREAL", "CEDAR", "COMET", "DELTA", "EMBER", "FJORD", "GLOBEX",
  "HARBOR", "INITECH", "LUMEN", "MERIDIAN", "NIMBUS", "ORION", "QUARTZ", "STARK", "UMBRA", "ZEPHYR",
];
const CHAT_CHANNEL = "chat:demo";
const CHAT_LINES = 20;
const CHAT_LETTERS = 200;

const byId = (id) => document.getElementById(id);

// The connection.

const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 20_000;
/** A connection that lived this long was a good one: the next loss begins the backoff anew. */
const STABLE_MS = 30_000;
/** From opening the socket to the answer to `connect`. */
const CONNECT_MS = 10_000;
/** How much later than announced the hub's ping may come. */
const PING_GRACE_MS = 10_000;
/** Below the hub's own limit (client.commands_per_message, 256). */
const COMMANDS_PER_MESSAGE = 100;
/** Close codes from here on mean: don't come back. */
const FINAL_CODE = 3500;

/** Full jitter: anything up to the doubled wait, so that clients lost together don't come back together. */
const backoffMs = (attempt) => Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);

/** The hub's answer to a command that failed, or our own where the connection went before the answer (code 0). */
class CommandError extends Error {
  constructor({ code = 0, message, temporary = false }) {
    super(message);
    this.code = code;
    this.temporary = temporary;
  }
}

/** One client of the native protocol (https://centrifugal.dev/docs/transports/client_protocol), JSON over WebSocket.

    onState is told {name: "connecting"}, {name: "connected", client, version}, {name: "waiting", code, reason, retryAt}
    (retryAt in ms of performance.now()) or {name: "closed", code, reason}, after which nothing happens any more.
    onRefused(channel, error) is told of a subscription that the hub does not grant. */
class Client {
  #url;
  #onState;
  #onRefused;
  #socket = null;
  #channels = new Map(); // channel → what takes its publications
  #asked = new Map(); // id of a command → its promise's ends
  #lines = []; // commands of this turn
  #lastId = 0;
  #attempt = 0; // how often in a row the connection was lost
  #connectedAt = null; // performance.now() of the hub's answer to connect; null: not connected
  #silenceMs = 0; // how long the hub may be silent; 0: for ever
  #watchdog = 0; // timers
  #retry = 0;

  constructor(url, onState, onRefused) {
    this.#url = url;
    this.#onState = onState;
    this.#onRefused = onRefused;
  }

  /** Pass a channel's publications, {data, info}, to `take`: now, and after each reconnect. */
  subscribe(channel, take) {
    this.#channels.set(channel, take);
    if (this.#connectedAt !== null) this.#join(channel);
  }

  /** Resolves when the hub has taken `data`; rejects with a CommandError. */
  publish(channel, data) {
    if (this.#connectedAt === null) return Promise.reject(new CommandError({ message: "not connected", temporary: true }));
    return this.#ask("publish", { channel, data });
  }

  open() {
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#retry = 0;
    this.#expectWithin(CONNECT_MS);
    socket.onopen = () => this.#greet(socket);
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#lose(event.code, event.reason, event.code >= FINAL_CODE);
    this.#onState({ name: "connecting" });
  }

  /** End a wait between two attempts now. */
  hurry() {
    clearTimeout(this.#retry);
    if (this.#retry) this.open();
  }

  // From the socket.

  #receive(text) {
    for (const line of text.split("\n")) {
      const message = JSON.parse(line);
      if (message.push) this.#push(message.push);
      else if (message.id) this.#answer(message);
      else this.#pong();
    }
  }

  #push({ channel, pub, unsubscribe }) {
    if (pub) this.#channels.get(channel)?.(pub);
    else if (unsubscribe?.code >= 2500) this.#join(channel);
    else if (unsubscribe) this.#onRefused(channel, new CommandError({ code: unsubscribe.code, message: unsubscribe.reason }));
  }

  #answer(reply) {
    const asked = this.#asked.get(reply.id);
    this.#asked.delete(reply.id);
    if (reply.error) asked.reject(new CommandError(reply.error));
    else asked.resolve(reply[asked.method] ?? {});
  }

  #pong() {
    this.#write("{}");
    this.#expectWithin(this.#silenceMs);
  }

  /** The socket is gone, or as good as gone: try again later, or never. */
  #lose(code, reason, final = false) {
    const socket = this.#socket;
    this.#socket = socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(); // where it is half dead the browser may take long over it; nobody listens any more
    clearTimeout(this.#watchdog);
    if (this.#connectedAt !== null && performance.now() - this.#connectedAt >= STABLE_MS) this.#attempt = 0;
    this.#connectedAt = null;
    const error = new CommandError({ message: "the connection was lost", temporary: true });
    for (const { reject } of this.#asked.values()) reject(error);
    this.#asked.clear();
    if (final) return this.#onState({ name: "closed", code, reason });
    const delayMs = backoffMs(this.#attempt++);
    this.#retry = setTimeout(() => this.open(), delayMs);
    this.#onState({ name: "waiting", code, reason, retryAt: performance.now() + delayMs });
  }

  #expectWithin(ms) {
    clearTimeout(this.#watchdog);
    if (ms) this.#watchdog = setTimeout(() => this.#lose(0, "the hub fell silent"), ms);
  }

  // Commands.

  async #greet(socket) {
    try {
      const { client, version, ping } = await this.#ask("connect", { name: "demo" });
      this.#connectedAt = performance.now();
      this.#silenceMs = ping ? ping * 1000 + PING_GRACE_MS : 0;
      this.#expectWithin(this.#silenceMs);
      this.#onState({ name: "connected", client, version });
      for (const channel of this.#channels.keys()) this.#join(channel);
    } catch (error) {
      if (socket === this.#socket) this.#lose(error.code, error.message, !error.temporary);
    }
  }

  async #join(channel, attempt = 0) {
    const socket = this.#socket;
    try {
      await this.#ask("subscribe", { channel });
    } catch (error) {
      if (socket !== this.#socket) return; // the next connection subscribes to everything anew
      if (!error.temporary) return this.#onRefused(channel, error);
      setTimeout(() => socket === this.#socket && this.#join(channel, attempt + 1), backoffMs(attempt));
    }
  }

  /** Resolves with a command's result. There is no time limit of its own: a hub that lives answers, and one that doesn't is
      found out by its missing pings. */
  #ask(method, params) {
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId;
      this.#asked.set(id, { method, resolve, reject });
      this.#write(JSON.stringify({ id, [method]: params }));
    });
  }

  /** What one turn writes leaves as one message: twenty subscriptions are one frame. */
  #write(line) {
    if (this.#lines.push(line) > 1) return;
    const socket = this.#socket;
    queueMicrotask(() => {
      while (this.#lines.length) socket.send(this.#lines.splice(0, COMMANDS_PER_MESSAGE).join("\n"));
    });
  }
}

// The prices.

const EMPTY = "–";
const GROUPED = new Intl.NumberFormat("en");
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

const fixed = (value) => (Number.isFinite(value) ? value.toFixed(2) : EMPTY);

/** "up", "down", or "" where there is no difference. */
const direction = (from, to) => (to > from ? "up" : to < from ? "down" : "");

/** +0.42 %: the sign stands in the text, for those who see neither colour nor arrow. */
const percent = (from, to) => `${to > from ? "+" : ""}${((to / from - 1) * 100).toFixed(2)} %`;

/** time_ns is a decimal string, as JavaScript's numbers would lose its last digits; here milliseconds are enough. */
function clock(time_ns) {
  const ms = Number(String(time_ns).slice(0, -6));
  return Number.isFinite(ms) ? CLOCK.format(ms) : EMPTY;
}

/** One symbol's line. */
class Row {
  #cells = new Map(); // column → its text node
  #change;
  #first = null;
  #shown = null;
  #tick = null;

  constructor(symbol, template) {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.symbol = symbol;
    this.element.querySelector("th").textContent = symbol;
    for (const cell of this.element.querySelectorAll("td")) {
      cell.textContent = EMPTY;
      this.#cells.set(cell.dataset.column, cell.firstChild);
    }
    this.#change = this.element.querySelector("[data-column=change]");
  }

  /** Keep the newest tick; whether there is anything to paint. */
  take(tick) {
    if (!Number.isFinite(tick?.price)) return false;
    this.#tick = tick;
    return true;
  }

  paint() {
    const { price, bid, ask, volume, time_ns } = this.#tick;
    this.#first ??= price;
    this.#flash(direction(this.#shown ?? price, price));
    this.#shown = price;
    this.#set("price", fixed(price));
    this.#set("change", percent(this.#first, price));
    this.#set("bid", fixed(bid));
    this.#set("ask", fixed(ask));
    this.#set("volume", Number.isFinite(volume) ? GROUPED.format(volume) : EMPTY);
    this.#set("time", clock(time_ns));
    const way = direction(this.#first, price);
    if (this.#change.className !== way) this.#change.className = way;
  }

  /** Only what differs is written: each write costs a layout of the table. */
  #set(column, text) {
    const node = this.#cells.get(column);
    if (node.data !== text) node.data = text;
  }

  /** demo.css animates the class; Board takes it off when the animation ends, and until then it stays. */
  #flash(way) {
    if (way && !this.element.className) this.element.className = way;
  }
}

/** The table: publications in at any rate, at most one painting for each frame of the screen. */
class Board {
  #rows = new Map();
  #changed = new Set();

  constructor(body, template, symbols) {
    for (const symbol of symbols) {
      const row = new Row(symbol, template);
      this.#rows.set(symbol, row);
      body.append(row.element);
    }
    body.addEventListener("animationend", (event) => (event.target.className = ""));
  }

  take(symbol, tick) {
    const row = this.#rows.get(symbol);
    if (!row.take(tick)) return;
    if (!this.#changed.size) requestAnimationFrame(() => this.#paint());
    this.#changed.add(row);
  }

  #paint() {
    const changed = [...this.#changed];
    this.#changed.clear();
    for (const row of changed) row.paint();
  }
}

// The chat.

/** The last messages of a channel, and a line to write one. */
class Chat {
  #list;
  /** The connection's client id, by which our own messages are known. */
  own = "";

  constructor(list, form, problem, send) {
    this.#list = list;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const input = form.elements.text;
      try {
        await send({ text: input.value.slice(0, CHAT_LETTERS) });
        input.value = problem.textContent = "";
      } catch (error) {
        problem.textContent = `Not sent: ${error.message}`;
      }
    });
  }

  take({ data, info }) {
    const line = document.createElement("li");
    const who = document.createElement("span");
    const own = info?.client === this.own;
    who.className = "who";
    who.textContent = own ? "you" : info?.user || info?.client?.slice(0, 6) || "server";
    line.classList.toggle("own", own);
    line.append(who, String(data?.text ?? JSON.stringify(data)).slice(0, CHAT_LETTERS));
    this.#list.append(line);
    while (this.#list.children.length > CHAT_LINES) this.#list.firstElementChild.remove();
    this.#list.scrollTop = this.#list.scrollHeight;
  }
}

// The head of the page: connection and rate.

const WORDS = { connecting: "Connecting", connected: "Connected", waiting: "Reconnecting", closed: "Closed" };

/** What the small print says of a state at the time `now`. */
function detail({ name, client, version, code, reason, retryAt }, now) {
  if (name === "connected") return `client ${client.slice(0, 8)}${version ? ` · hub ${version}` : ""}`;
  const why = [code, reason].filter(Boolean).join(" ");
  if (name === "waiting") return `in ${Math.max(0, Math.ceil((retryAt - now) / 1000))} s${why ? ` (${why})` : ""}`;
  return name === "closed" ? `${why}; reload the page to try again` : "";
}

/** Connection state and messages per second. */
class Head {
  /** Publications since the rate was shown last. */
  count = 0;
  #state = { name: "connecting" };
  #since = performance.now();

  constructor() {
    setInterval(() => this.#second(), 1000);
  }

  show(state) {
    this.#state = state;
    document.body.dataset.state = state.name;
    const word = byId("state");
    // Attempts follow each other every few seconds while the hub is away; "Reconnecting" is said once.
    if (state.name !== "connecting" || word.textContent !== WORDS.waiting) word.textContent = WORDS[state.name];
    this.#second();
  }

  #second() {
    const now = performance.now();
    byId("detail").textContent = detail(this.#state, now);
    // A browser slows the timer of a page that nobody sees, so the time is measured.
    if (now - this.#since < 900) return;
    byId("rate").textContent = String(Math.round((this.count * 1000) / (now - this.#since)));
    this.count = 0;
    this.#since = now;
  }
}

// Wiring.

const head = new Head();
const board = new Board(byId("rows"), byId("row"), SYMBOLS);
const chat = new Chat(byId("messages"), byId("write"), byId("problem"), (data) => client.publish(CHAT_CHANNEL, data));
const onRefused = (channel, error) => (byId("problem").textContent = `${channel}: ${error.message} (${error.code})`);
const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/connection/websocket`;
const onState = (state) => {
  chat.own = state.client ?? chat.own;
  head.show(state);
};
const client = new Client(url, onState, onRefused);
const counted = (take) => (publication) => {
  head.count += 1;
  take(publication);
};
for (const symbol of SYMBOLS) client.subscribe(`ticker:${symbol}`, counted(({ data }) => board.take(symbol, data)));
client.subscribe(CHAT_CHANNEL, counted((publication) => chat.take(publication)));
addEventListener("online", () => client.hurry());
client.open();
