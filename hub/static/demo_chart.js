/* The demo page's chart: the bars of one symbol, those that are kept and then each as it is closed, drawn on a canvas.

   Does: load a channel's history and go on behind it without a gap (Bars); draw, follow pointer and keys (Chart).
   Does not: form closed bars (hub/bars.py does, in the hub); the one that is forming is drawn of the values seen here.
   Called by: demo.js.
   Never break: what is missing between two bars is told and drawn, never closed up; all that the canvas shows can be had
   by keys and as a table.
*/

import { colours, countText, direction, fit, priceText } from "/static/demo_board.js";
import { msOf } from "/static/demo_feed.js";

export const INTERVALS_MS = { "1s": 1000, "1m": 60_000 };
const LOADED = 300; // as many as the hub gives at once (client.history_publications)
const KEPT = 600;
const TABLE_ROWS = 60;

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MINUTES = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

/** @typedef {{ms: number, open: number, high: number, low: number, close: number, volume: number, count: number,
      first: number, last: number, partial: boolean, isForming?: boolean, isBehindGap?: boolean}} Bar */

/** @returns {Bar | null} of a publication's data; null for what is none. */
function barOf(data) {
  const { time_ns, open, high, low, close, volume, count, first_seq: first, last_seq: last, partial = false } = data ?? {};
  const ms = msOf(time_ns);
  return [ms, open, high, low, close].every(Number.isFinite) ? { ms, open, high, low, close, volume, count, first, last, partial } : null;
}

/** The bars of one symbol and interval, kept up to date. */
export class Bars {
  #hub;
  #on;
  #turn = {}; // stands for one symbol and interval; what belongs to an older one is not listened to
  #sub = null;
  #offset = 0;
  symbol = "";
  interval = "1m";
  /** @type {Bar[]} closed, oldest first */
  closed = [];
  /** @type {Bar | null} */
  forming = null;
  /** Bars or ticks between the first bar and the last one that never came. */
  gaps = 0;
  isLoaded = false;
  /** What is kept could not be had over this wire: bars begin with the next one. */
  isWithoutHistory = false;

  /** on: change(isNew), fault(text). */
  constructor(hub, on) { [this.#hub, this.#on] = [hub, on]; }

  get all() { return this.forming ? [...this.closed, this.forming] : this.closed; }

  open(symbol, interval) {
    this.close();
    [this.symbol, this.interval] = [symbol, interval];
    if (symbol) this.#load(this.#turn);
  }

  close() {
    this.#turn = {};
    this.#sub?.unsubscribe();
    this.#sub = null;
    [this.closed, this.forming, this.gaps, this.#offset] = [[], null, 0, 0];
    this.isLoaded = this.isWithoutHistory = false;
  }

  /** There is a connection: load what could not be had without one. What is loaded goes on by itself. */
  resume() {
    if (!this.symbol) return;
    if (this.isWithoutHistory && this.#hub.state.wire === "websocket") this.open(this.symbol, this.interval);
    else if (!this.isLoaded) this.#load((this.#turn = {}));
  }

  /** A price of the symbol, from which the forming bar is made. */
  tick(price, ms) {
    if (!this.isLoaded || !Number.isFinite(price) || !Number.isFinite(ms)) return;
    const lengthMs = INTERVALS_MS[this.interval];
    const start = Math.floor(ms / lengthMs) * lengthMs;
    const { forming } = this;
    if (start <= (this.closed.at(-1)?.ms ?? 0) || start < (forming?.ms ?? 0)) return;
    if (forming?.ms === start) {
      [forming.high, forming.low, forming.close] = [Math.max(forming.high, price), Math.min(forming.low, price), price];
    } else {
      this.forming = { ms: start, open: price, high: price, low: price, close: price, volume: 0, count: 0, isForming: true };
    }
    this.#on.change(false);
  }

  async #load(turn) {
    const channel = `bars:${this.interval}:${this.symbol}`;
    let page = { publications: [], offset: 0, epoch: "" };
    try {
      page = await this.#hub.history(channel, { limit: LOADED, reverse: true });
    } catch (error) {
      if (turn !== this.#turn) return;
      if (!error.temporary) return this.#on.fault(`No bars here: ${error.message} (${error.code}).`);
      // Without a connection there will be another call; other wires have no history.
      if (this.#hub.state.name !== "connected" || this.#hub.state.wire === "websocket") return;
    }
    if (turn !== this.#turn) return;
    for (const { data, offset } of page.publications.reverse()) this.#push(data, offset);
    this.isLoaded = true;
    const { epoch, offset } = page;
    this.isWithoutHistory = !epoch;
    const sub = (this.#sub = this.#hub.subscribe(channel, epoch ? { since: { epoch, offset } } : {}));
    sub.on("publication", ({ data, offset }) => {
      if (turn !== this.#turn) return;
      this.#push(data, offset);
      this.#on.change(true);
    });
    sub.on("lost", () => turn === this.#turn && this.open(this.symbol, this.interval));
    sub.on("error", ({ message, code }) => turn === this.#turn && this.#on.fault(`No bars here: ${message} (${code}).`));
    this.#on.change(true);
  }

  #push(data, offset) {
    const bar = barOf(data);
    const last = this.closed.at(-1);
    const isMissing = this.#offset && offset > this.#offset + 1;
    this.#offset = offset;
    if (!bar) return;
    bar.isBehindGap = Boolean(last && (isMissing || (Number.isFinite(last.last) && bar.first > last.last + 1)));
    this.gaps += bar.isBehindGap;
    this.closed.push(bar);
    if (this.closed.length > KEPT) this.gaps -= this.closed.shift().isBehindGap;
    if (this.forming && this.forming.ms <= bar.ms) this.forming = null;
  }
}

/** In words: for the line above the chart, and for who does not see it. */
function words(bar) {
  const { ms, open, high, low, close, volume, count, partial, isForming, isBehindGap } = bar;
  const prices = `open ${priceText(open)}, high ${priceText(high)}, low ${priceText(low)}, close ${priceText(close)}`;
  const rest = isForming ? ", forming" : `, volume ${countText(volume)}, ${countText(count)} ticks`;
  return `${CLOCK.format(ms)} ${prices}${rest}${partial ? ", partial" : ""}${isBehindGap ? ", behind a gap" : ""}`;
}

const [AXIS, FOOT, STEP] = [62, 20, 8]; // pixels: beside and below the plot, and from one bar to the next

export class Chart {
  #bars;
  #canvas;
  #legend;
  #table;
  #isDue = false;
  #colours = null;
  #at = null; // the bar that is looked at, by its time; null: the newest
  #isAsked = false; // by a key: what is looked at is to be read aloud

  constructor(bars, { canvas, legend, table }) {
    [this.#bars, this.#canvas, this.#legend, this.#table] = [bars, canvas, legend, table];
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointermove", (event) => this.#point(event));
    canvas.addEventListener("pointerdown", (event) => this.#point(event));
    canvas.addEventListener("pointerleave", () => this.#look(null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    table.closest("details").addEventListener("toggle", () => this.#fill());
  }

  /** Draw with the next frame, however often this is called. isNew: a bar has been closed. */
  draw(isNew = false) {
    if (isNew) this.#fill();
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#paint();
    });
  }

  /** The colours may be others now. */
  recolour() {
    this.#colours = null;
    this.draw();
  }

  /** The bars that have room. */
  #visible() {
    const room = Math.max(1, Math.floor((this.#canvas.clientWidth - AXIS) / STEP));
    return this.#bars.all.slice(-room);
  }

  #point({ offsetX }) {
    const bars = this.#visible();
    const first = this.#canvas.clientWidth - AXIS - bars.length * STEP;
    const at = Math.min(bars.length - 1, Math.max(0, Math.floor((offsetX - first) / STEP)));
    this.#look(bars[at]?.ms ?? null);
  }

  #key(event) {
    const bars = this.#visible();
    const at = this.#at === null ? bars.length - 1 : bars.findIndex(({ ms }) => ms === this.#at);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: bars.length - 1 }[event.key];
    if (event.key === "Escape") return this.#look(null);
    if (to === undefined || !bars.length) return;
    event.preventDefault();
    this.#look(bars[Math.min(bars.length - 1, Math.max(0, to))].ms);
  }

  #look(ms) {
    [this.#at, this.#isAsked] = [ms, true];
    this.draw();
  }

  #paint() {
    const [canvas, bars] = [this.#canvas, this.#visible()];
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    fit(canvas, width, height);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    let at = this.#at === null ? bars.length - 1 : bars.findIndex(({ ms }) => ms === this.#at);
    if (at < 0) [at, this.#at] = [bars.length - 1, null]; // it has moved out of the picture
    this.#tell(bars, at);
    if (!bars.length) return;
    this.#colours ??= colours("text", "quiet", "line", "panel", "up", "down", "wait");
    const plot = new Plot(context, this.#colours, bars, width, height);
    plot.grid();
    plot.candles();
    plot.last();
    if (this.#at !== null) plot.crosshair(at);
  }

  /** The same in words. */
  #tell(bars, at) {
    const canvas = this.#canvas;
    const [text, before] = [bars[at] ? words(bars[at]) : "", this.#legend.textContent];
    if (text !== before) this.#legend.textContent = text;
    // Read aloud as it changes where the focus is here: so the newest bar, which changes all the time, only on a key.
    if (!this.#isAsked && canvas === document.activeElement) return;
    this.#isAsked = false;
    canvas.setAttribute("aria-valuemax", String(Math.max(0, bars.length - 1)));
    canvas.setAttribute("aria-valuenow", String(Math.max(0, at)));
    canvas.setAttribute("aria-valuetext", text || "no bars yet");
  }

  #fill() {
    if (!this.#table.closest("details").open) return;
    const rows = this.#bars.closed.slice(-TABLE_ROWS).reverse().map(({ ms, open, high, low, close, volume, partial, isBehindGap }) => {
      const row = document.createElement("tr");
      const head = row.appendChild(document.createElement("th"));
      head.scope = "row";
      head.textContent = CLOCK.format(ms);
      const notes = [partial && "partial", isBehindGap && "gap before"].filter(Boolean).join(", ");
      for (const text of [...[open, high, low, close].map(priceText), countText(volume), notes]) {
        row.appendChild(document.createElement("td")).textContent = text;
      }
      return row;
    });
    this.#table.replaceChildren(...rows);
  }
}

/** One picture. */
class Plot {
  #context;
  #colours;
  #bars;
  #right;
  #bottom;
  #low;
  #high;
  #volume;
  #width;

  constructor(context, colours, bars, width, height) {
    [this.#context, this.#colours, this.#bars, this.#width] = [context, colours, bars, width];
    [this.#right, this.#bottom] = [width - AXIS, height - FOOT];
    [this.#low, this.#high] = [Math.min(...bars.map((bar) => bar.low)), Math.max(...bars.map((bar) => bar.high))];
    const margin = (this.#high - this.#low || this.#high * 0.001) * 0.08;
    [this.#low, this.#high] = [this.#low - margin, this.#high + margin];
    this.#volume = Math.max(1, ...bars.map((bar) => bar.volume || 0));
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
  }

  #x(at) { return this.#right - (this.#bars.length - at) * STEP + STEP / 2; }
  #y(price) { return 6 + ((this.#high - price) / (this.#high - this.#low)) * (this.#bottom - 6 - this.#bottom * 0.16); }

  #line(x1, y1, x2, y2, colour, dash = []) {
    const context = this.#context;
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    context.setLineDash([]);
  }

  /** Prices at round numbers and times at round minutes, no closer than can be read. */
  grid() {
    const [context, { line, quiet }] = [this.#context, this.#colours];
    const rough = ((this.#high - this.#low) / this.#bottom) * 44;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5, 10].find((many) => many * power >= rough) ?? 10);
    context.textAlign = "left";
    for (let price = Math.ceil(this.#low / step) * step; price < this.#high; price += step) {
      const y = Math.round(this.#y(price)) + 0.5;
      if (y > this.#bottom - 4) continue;
      this.#line(0, y, this.#right, y, line);
      context.fillStyle = quiet;
      context.fillText(priceText(price), this.#right + 6, y);
    }
    this.#line(0, this.#bottom + 0.5, this.#right, this.#bottom + 0.5, line);
    context.textAlign = "center";
    const spacing = this.#bars.length > 1 ? Math.min(...this.#bars.slice(1).map((bar, i) => bar.ms - this.#bars[i].ms).filter((ms) => ms > 0)) : 1000;
    const every = [5, 10, 15, 30, 60, 300, 600, 900, 1800, 3600].map((s) => s * 1000).find((ms) => (ms / spacing) * STEP >= 70) ?? 7_200_000;
    this.#bars.forEach(({ ms }, at) => {
      if (ms % every || this.#x(at) < 22) return;
      context.fillStyle = quiet;
      context.fillText((every < 60_000 ? CLOCK : MINUTES).format(ms), this.#x(at), this.#bottom + FOOT / 2 + 2);
    });
  }

  /** Hollow where the price went up, filled where it went down; the forming bar is dashed. */
  candles() {
    const [context, { up, down, quiet, wait, panel }] = [this.#context, this.#colours];
    this.#bars.forEach((bar, at) => {
      const [x, isDown] = [Math.round(this.#x(at)), bar.close < bar.open];
      const colour = isDown ? down : bar.close > bar.open ? up : quiet;
      const [top, low] = [Math.round(this.#y(Math.max(bar.open, bar.close))), Math.round(this.#y(Math.min(bar.open, bar.close)))];
      if (bar.isBehindGap) this.#line(x - STEP / 2 + 0.5, 0, x - STEP / 2 + 0.5, this.#bottom, wait, [3, 3]);
      context.globalAlpha = 0.28;
      context.fillStyle = colour;
      const tall = ((bar.volume || 0) / this.#volume) * this.#bottom * 0.13;
      context.fillRect(x - 2.5, this.#bottom - tall, 5, tall);
      context.globalAlpha = 1;
      this.#line(x, this.#y(bar.high), x, this.#y(bar.low), colour);
      context.fillStyle = isDown ? colour : panel;
      context.fillRect(x - 2.5, top - 0.5, 5, Math.max(1, low - top));
      context.strokeStyle = colour;
      context.setLineDash(bar.isForming ? [2, 1.5] : []);
      context.strokeRect(x - 2.5, top - 0.5, 5, Math.max(1, low - top));
      context.setLineDash([]);
    });
  }

  /** The newest price, on the axis. */
  last() {
    const bar = this.#bars.at(-1);
    const way = direction(bar.open, bar.close);
    const y = Math.round(this.#y(bar.close)) + 0.5;
    this.#line(0, y, this.#right, y, this.#colours[way || "quiet"], [1, 3]);
    this.#tag(bar.close, y, this.#colours[way || "quiet"]);
  }

  crosshair(at) {
    const { text } = this.#colours;
    const [x, y] = [Math.round(this.#x(at)) + 0.5, Math.round(this.#y(this.#bars[at].close)) + 0.5];
    this.#line(x, 0, x, this.#bottom, text, [4, 3]);
    this.#line(0, y, this.#right, y, text, [4, 3]);
    this.#tag(this.#bars[at].close, y, text);
    this.#label(CLOCK.format(this.#bars[at].ms), Math.min(this.#right - 28, Math.max(28, x)), text);
  }

  #tag(price, y, colour) {
    const context = this.#context;
    context.fillStyle = colour;
    context.fillRect(this.#right + 1, y - 9, this.#width - this.#right - 1, 18);
    context.fillStyle = this.#colours.panel;
    context.textAlign = "left";
    context.fillText(priceText(price), this.#right + 6, y + 0.5);
  }

  #label(text, x, colour) {
    const context = this.#context;
    context.fillStyle = colour;
    context.fillRect(x - 28, this.#bottom + 1, 56, FOOT - 2);
    context.fillStyle = this.#colours.panel;
    context.textAlign = "center";
    context.fillText(text, x, this.#bottom + FOOT / 2 + 1);
  }
}
