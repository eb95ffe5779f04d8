/* The demo page: live prices and a chat, over whichever of the hub's wires gets through.

   Does: show the newest price of each symbol (Board), send and show messages (Chat).
   Does not: connect (hub.js does), need a build step or a library, or ask any server but the one that the page came from.
   Served by: hub/httpd.py, where `demo = true`; its channels are those of config/demo.toml.
   Never break: what others wrote reaches the page as text (textContent, Text.data), never as HTML.
*/

import { Hub } from "/hub.js";

/** The symbols of config/demo.toml, [ticker]; a test holds the two lists together. */
const SYMBOLS = [
  "ACME", "APEX", "ATLAS", "BOREAL", "CEDAR", "COMET", "DELTA", "EMBER", "FJORD", "GLOBEX",
  "HARBOR", "INITECH", "LUMEN", "MERIDIAN", "NIMBUS", "ORION", "QUARTZ", "STARK", "UMBRA", "ZEPHYR",
];
const CHAT_CHANNEL = "chat:demo";
const CHAT_LINES = 20;
const CHAT_LETTERS = 200;

const byId = (id) => document.getElementById(id);

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

const WIRES = { websocket: "", sse: "event stream", poll: "polling" };

/** What the small print says of a state at the time `now`. */
function detail({ name, wire, client, version, code, reason, retryAt }, now) {
  if (name === "connected") return [client ? `client ${client.slice(0, 8)}` : "", WIRES[wire], version ? `hub ${version}` : ""].filter(Boolean).join(" · ");
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
const chat = new Chat(byId("messages"), byId("write"), byId("problem"), (data) => hub.publish(CHAT_CHANNEL, data));
/** /?wire=sse and /?wire=poll show what a network sees that lets no WebSockets through. */
const wire = new URLSearchParams(location.search).get("wire");
const hub = new Hub(wire in WIRES ? { wires: [wire] } : {});
hub.on("state", (state) => {
  chat.own = state.client ?? chat.own;
  head.show(state);
});

/** Be in a channel, and count what comes of it. */
function follow(channel, take) {
  const subscription = hub.subscribe(channel);
  subscription.on("publication", (publication) => {
    head.count += 1;
    take(publication);
  });
  subscription.on("error", ({ message, code }) => (byId("problem").textContent = `${channel}: ${message} (${code})`));
}

for (const symbol of SYMBOLS) follow(`ticker:${symbol}`, ({ data }) => board.take(symbol, data));
follow(CHAT_CHANNEL, (publication) => chat.take(publication));
hub.open();
