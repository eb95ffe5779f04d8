/* The demo page: a watch list of live prices, at the rate that the reader likes, and the bars of one symbol.

   Does: put together feed (demo_feed.js), watch list (demo_board.js) and chart (demo_chart.js); hear the controls, keep what
   they say for the next visit; show connection, rate and latency.
   Does not: connect (hub.js does), need a build step or a library, or ask any server but the one that the page came from.
   Served by: hub/assets.py, where `demo = true`; its channels are those of config/demo.toml.
   Never break: no price is read aloud by itself; what is done by pointer is done by keys.
*/

import { Hub } from "/hub.js";
import { Board } from "/static/demo_board.js";
import { Bars, Chart, INTERVALS_MS } from "/static/demo_chart.js";
import { Clock, Durations, EVERY, Feed, SLOW_MS } from "/static/demo_feed.js";

/** The symbols of config/demo.toml, [ticker]; a test holds the two lists together. */
const SYMBOLS = [
  "ACME", "APEX", "ATLAS", "BOREAL", "CEDAR", "COMET", "DELTA", "EMBER", "FJORD", "GLOBEX",
  "HARBOR", "INITECH", "LUMEN", "MERIDIAN", "NIMBUS", "ORION", "QUARTZ", "STARK", "UMBRA", "ZEPHYR",
];
const MOST_SYMBOLS = 100; // as many as a watch list holds, config/demo.toml
const isName = (text) => typeof text === "string" && /^[A-Za-z0-9_.-]{1,64}$/.test(text);
/** The stops of the rate's slider, in values per second and symbol. */
const STOPS_HZ = [0, 0.5, 1, 2, 5, 10, 20, EVERY];
const MOST_NAMES = 3; // more than so many symbols are counted, and not named one by one
const [SOON_MS, SAY_MS] = [200, 2000]; // after what is done at once, and then no oftener
const SECONDS = 4; // over so many the rate is taken: what comes every two seconds has one too

const byId = (id) => document.getElementById(id);
const rateText = (hz) => (hz === EVERY ? "every value" : hz ? `${hz} per second` : "paused");
const msText = (ms) => (ms < 9.95 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

// What is kept from visit to visit.

const STORE = "hub.demo";

/** The choices of the last visit, each as far as it can be one. */
function remembered() {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(STORE));
  } catch {
    // Storage is forbidden, or somebody else has written there: this visit begins anew.
  }
  const { symbols, stop, compact, chosen, interval } = kept ?? {};
  const good = Array.isArray(symbols) ? [...new Set(symbols)].filter(isName).slice(0, MOST_SYMBOLS) : SYMBOLS;
  return {
    symbols: good,
    stop: stop in STOPS_HZ ? Number(stop) : STOPS_HZ.length - 1,
    compact: compact === true,
    chosen: good.includes(chosen) ? chosen : good[0] ?? "",
    interval: interval in INTERVALS_MS ? interval : "1s",
  };
}

const choices = remembered();

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(choices));
  } catch {
    // Forbidden, or full: the choices are those of this visit then.
  }
}

// What is read aloud: what was done, what is stale; together and now and then, so that nobody is talked down.

const toSay = new Set();
let sayTimer = 0;
let saidAt = -Infinity;

let stale = [];
let staleSaid = [];

function say(text) {
  if (text) toSay.add(text);
  sayTimer ||= setTimeout(() => {
    const news = (symbols, word) => {
      if (symbols.length > MOST_NAMES) toSay.add(`${symbols.length} symbols are ${word}`);
      else for (const symbol of symbols) toSay.add(`${symbol} is ${word}`);
    };
    news(stale.filter((symbol) => !staleSaid.includes(symbol)), "stale");
    news(staleSaid.filter((symbol) => !stale.includes(symbol) && board.symbols.includes(symbol)), "live");
    if (toSay.size) byId("said").textContent = [...toSay].join(". ");
    toSay.clear();
    [staleSaid, sayTimer, saidAt] = [stale, 0, performance.now()];
  }, Math.max(SOON_MS, saidAt + SAY_MS - performance.now()));
}

// The head of the page.

const WORDS = { connecting: "Connecting", connected: "Connected", waiting: "Reconnecting", closed: "Closed" };
const WIRES = { websocket: "WebSocket", sse: "event stream", poll: "polls" };

/** What the small print says of a state at the time `now`. */
function detail({ name, wire, client, version, code, reason, retryAt }, now) {
  if (name === "connected") return [WIRES[wire], client ? `client ${client.slice(0, 8)}` : "", version ? `hub ${version}` : ""].filter(Boolean).join(" · ");
  const why = [code, reason].filter(Boolean).join(" ");
  if (name === "waiting") return `in ${Math.max(0, Math.ceil((retryAt - now) / 1000))} s${why ? ` (${why})` : ""}`;
  return name === "closed" ? `${why}; reload the page to try again` : "";
}

/** Connection state, updates per second, and how old they are when they are seen. */
class Head {
  #state = { name: "connecting" };
  #seconds = [{ since: performance.now(), updates: 0, merged: 0 }]; // of late, the present one last
  #latency = new Durations();
  #due = []; // times of the values that the next frame shows
  #fresh = Infinity; // values from before are old by our own doing: what we paused for, or had not asked for
  #clock;

  constructor(clock) {
    this.#clock = clock;
    setInterval(() => this.#second(), 1000);
    // A page that nobody sees has no frames.
    document.addEventListener("visibilitychange", () => (this.#due.length = 0));
  }

  show(state) {
    this.#state = state;
    document.body.dataset.state = state.name;
    const word = byId("state");
    // Attempts follow each other every few seconds while the hub is away; "Reconnecting" is said once.
    if (state.name !== "connecting" || word.textContent !== WORDS.waiting) word.textContent = WORDS[state.name];
    this.#second();
  }

  /** From now on values come as they are new. */
  renew() { this.#fresh = NaN; }

  count({ merged, repeat, sourceMs }) {
    if (repeat) return;
    const second = this.#seconds.at(-1);
    second.updates += 1;
    second.merged += merged;
    const now = this.#clock.nowMs;
    if (document.hidden || Number.isNaN(now) || Number.isNaN(sourceMs)) return;
    if (Number.isNaN(this.#fresh)) this.#fresh = now;
    if (sourceMs < this.#fresh) return;
    this.#due.push(sourceMs);
    if (this.#due.length > 1) return;
    requestAnimationFrame(() => {
      const shownMs = this.#clock.nowMs;
      for (const ms of this.#due.splice(0)) this.#latency.add(shownMs - ms);
    });
  }

  #second() {
    const now = performance.now();
    byId("detail").textContent = detail(this.#state, now);
    if (now - this.#seconds.at(-1).since < 900) return;
    // A browser slows the timer of a page that nobody sees, so the time is measured.
    const spanS = (now - this.#seconds[0].since) / 1000;
    const [updates, merged] = ["updates", "merged"].map((name) => this.#seconds.reduce((sum, second) => sum + second[name], 0));
    byId("rate").textContent = String(Math.round(updates / spanS));
    byId("merged").textContent = updates ? `${Math.round((100 * merged) / (updates + merged))} %` : "–";
    this.#seconds.push({ since: now, updates: 0, merged: 0 });
    if (this.#seconds.length > SECONDS) this.#seconds.shift();
    const [median, p99] = this.#latency.quantiles([0.5, 0.99]) ?? [];
    byId("median").textContent = median === undefined ? "–" : msText(median);
    byId("p99").textContent = p99 === undefined ? "–" : msText(p99);
  }
}

// Wiring.

/** /?wire=sse and /?wire=poll show what a network sees that lets no WebSockets through. */
const wire = new URLSearchParams(location.search).get("wire");
const hub = new Hub(wire in WIRES ? { wires: [wire] } : {});
const clock = new Clock(hub);
const head = new Head(clock);

const controls = { hz: byId("hz"), pause: byId("pause"), compact: byId("compact"), slow: byId("slow") };
let stopBefore = choices.stop || STOPS_HZ.length - 1; // where Pause goes back to
let fault = "";
let granted = "";

/** The controls as they are now, and a line that says why some are not to be had. */
function showControls() {
  const [hz, isSlow] = [STOPS_HZ[choices.stop], controls.slow.checked];
  controls.hz.value = String(choices.stop);
  controls.hz.setAttribute("aria-valuetext", rateText(hz));
  byId("hz-text").textContent = rateText(hz);
  controls.pause.setAttribute("aria-pressed", String(hz === 0));
  controls.compact.checked = choices.compact;
  controls.hz.disabled = isSlow || !feed.isRich;
  controls.pause.disabled = isSlow;
  controls.compact.disabled = !feed.isRich;
  document.body.dataset.fields = choices.compact && feed.isRich ? "compact" : "all";
  const slow = `This page comes for values only every ${SLOW_MS / 1000} s now. The hub keeps no queue for it: each time there is the newest value of each symbol, and the mark says of how many.`;
  const poor = "Rate, fields and marks are had of a watch list, which this hub has none of; here each symbol comes as it is.";
  byId("note").textContent = fault || (isSlow ? slow : feed.isRich ? granted : poor);
}

function setStop(stop) {
  [choices.stop, granted] = [stop, ""];
  if (stop) stopBefore = stop;
  head.renew();
  feed.hz = STOPS_HZ[stop];
  showControls();
  keep();
}

/** A value of the feed, to all who show something of it. */
function take(value) {
  head.count(value);
  board.take(value);
  if (value.symbol === bars.symbol) bars.tick(value.data?.price, value.sourceMs);
}

const feed = new Feed(hub, { symbols: choices.symbols, hz: STOPS_HZ[choices.stop], compact: choices.compact }, {
  take,
  granted(hz) {
    const asked = STOPS_HZ[choices.stop];
    granted = hz < asked && !controls.slow.checked ? `The hub grants ${hz} per second here.` : "";
    showControls();
  },
  fault(text) {
    fault = text;
    showControls();
  },
});

const board = new Board(byId("rows"), byId("row"), {
  choose: showBarsOf,
  remove(symbol) {
    feed.remove(symbol);
    const next = board.remove(symbol);
    choices.symbols = board.symbols;
    (next ?? byId("query")).focus();
    say(`${symbol} removed`);
    if (choices.chosen === symbol) choose(board.symbols[0] ?? "");
    showList();
  },
  stale(symbols) {
    stale = symbols;
    say("");
  },
});

const bars = new Bars(hub, {
  change(isNew) {
    showBars("");
    chart.draw(isNew);
  },
  fault: showBars,
});
const chart = new Chart(bars, { canvas: byId("chart"), legend: byId("legend"), table: byId("bars") });

function showBars(problem) {
  const { closed, gaps, isWithoutHistory } = bars;
  byId("no-bars").hidden = !problem;
  byId("chart").hidden = byId("legend").hidden = Boolean(problem);
  if (byId("no-bars").textContent !== problem) byId("no-bars").textContent = problem;
  const text = problem ? "" : [`${closed.length} bars`, gaps ? `${gaps} ${gaps === 1 ? "gap" : "gaps"}` : "no gap", isWithoutHistory && "from now on"].filter(Boolean).join(", ");
  if (byId("bars-state").textContent !== text) byId("bars-state").textContent = text;
}

/** Show the bars of a symbol. */
function choose(symbol) {
  choices.chosen = symbol;
  board.choose(symbol);
  openBars();
  keep();
}

/** The reader has chosen one: where the chart is not beside the list, go there. */
function showBarsOf(symbol) {
  choose(symbol);
  const panel = document.querySelector(".bars");
  if (panel.getBoundingClientRect().top < innerHeight - 200) return;
  panel.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function openBars() {
  const { chosen, interval } = choices;
  byId("chart-title").textContent = chosen || "Bars";
  byId("chart").setAttribute("aria-label", `Bar of ${chosen}, ${interval === "1s" ? "one second" : "one minute"}`);
  bars.open(chosen, interval);
  showBars("");
  chart.draw(true);
}

function showList() {
  byId("empty").hidden = board.symbols.length > 0;
  keep();
}

function addSymbol(symbol) {
  board.add(symbol);
  feed.add(symbol);
  choices.symbols = board.symbols;
  showList();
}

for (const symbol of choices.symbols) board.add(symbol);
for (const symbol of SYMBOLS) byId("known").appendChild(document.createElement("option")).value = symbol;
for (const radio of document.getElementsByName("interval")) {
  radio.checked = radio.value === choices.interval;
  radio.addEventListener("change", () => {
    choices.interval = radio.value;
    openBars();
    keep();
  });
}

byId("query").addEventListener("input", ({ target }) => board.filter(target.value.trim()));
byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = byId("query");
  const text = query.value.trim();
  const known = [...board.symbols, ...SYMBOLS].find((symbol) => symbol.toUpperCase() === text.toUpperCase());
  const symbol = known ?? text;
  fault = "";
  if (!isName(symbol)) fault = text ? "A symbol has 1 to 64 of A-Z a-z 0-9 _ . -" : "";
  else if (board.symbols.includes(symbol)) showBarsOf(symbol);
  else if (board.symbols.length >= MOST_SYMBOLS) fault = `A watch list has at most ${MOST_SYMBOLS} symbols.`;
  else {
    addSymbol(symbol);
    say(`${symbol} added`);
    if (!choices.chosen) choose(symbol);
  }
  showControls();
  if (fault) return say(fault);
  query.value = "";
  board.filter("");
});

controls.hz.addEventListener("input", () => setStop(Number(controls.hz.value)));
controls.pause.addEventListener("click", () => setStop(choices.stop ? 0 : stopBefore));
controls.compact.addEventListener("change", () => {
  choices.compact = feed.compact = controls.compact.checked;
  showControls();
  keep();
});
controls.slow.addEventListener("change", () => {
  head.renew();
  feed.slow = controls.slow.checked;
  showControls();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  board.recolour();
  chart.recolour();
});

hub.on("state", (state) => {
  head.show(state);
  if (state.name === "connecting") {
    feed.use(state.wire);
    board.forget();
    fault = "";
    showControls();
  }
  if (state.name !== "connected") return;
  head.renew();
  clock.set();
  bars.resume();
});

showList();
choose(choices.chosen);
hub.open();
