/* The demo page's watch list: one line for each symbol, with its trend, its marks and what it may be asked.

   Does: take values at any rate and paint at most once for each frame of the screen; sample trends; say what is stale.
   Does not: know the hub (demo_feed.js) or draw bars (demo_chart.js).
   Called by: demo.js.
   Never break: names reach the page as text (textContent, Text.data), never as HTML; a direction, a stale value and a gap
   are told in words or signs, not only by colour.
*/

const EMPTY = "–";
const GROUPED = new Intl.NumberFormat("en");
const TREND = 60; // points, one every TREND_MS: half a minute
const TREND_MS = 500;
const GAP_MS = 10_000; // so long a gap is told

export const priceText = (value) => (Number.isFinite(value) ? value.toFixed(Math.abs(value) < 10 ? 4 : 2) : EMPTY);
export const countText = (value) => (Number.isFinite(value) ? GROUPED.format(value) : EMPTY);

/** "up", "down", or "" where there is no difference. */
export const direction = (from, to) => (to > from ? "up" : to < from ? "down" : "");

/** In percent, as far as it is shown. */
const change = (from, to) => Math.round((to / from - 1) * 1e4) / 100;

/** +0.42 %: the sign stands in the text, for those who see neither colour nor arrow. */
const percentText = (part) => `${part > 0 ? "+" : part < 0 ? "−" : ""}${Math.abs(part).toFixed(2)} %`;

/** What the style sheet says of each colour now; canvases can't look there themselves. */
export function colours(...names) {
  const probe = document.body.appendChild(document.createElement("i"));
  const found = names.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  });
  probe.remove();
  return Object.fromEntries(found);
}

/** A canvas in pixels of the screen; whether its size has changed, upon which it is empty. */
export function fit(canvas, width, height) {
  const ratio = globalThis.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width === w && canvas.height === h) return false;
  [canvas.width, canvas.height] = [w, h];
  canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
  return true;
}

/** One symbol's line. */
class Row {
  #cells = new Map(); // column → its text node
  #change;
  #price;
  #canvas;
  #trend = [];
  #first = null;
  #shown = null;
  #stands = 0; // values since the last painting
  #data = null;
  #gap = 0;
  #gapUntil = 0;
  isStale = false;

  constructor(symbol, template) {
    this.symbol = symbol;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.symbol = symbol;
    const [chosen, remove] = this.element.querySelectorAll("button");
    chosen.textContent = symbol;
    remove.setAttribute("aria-label", `Remove ${symbol}`);
    for (const cell of this.element.querySelectorAll("[data-column]")) {
      cell.append(EMPTY);
      this.#cells.set(cell.dataset.column, cell.lastChild);
    }
    this.#change = this.element.querySelector("[data-column=change]");
    this.#price = this.element.querySelector("[data-column=price]");
    this.#canvas = this.element.querySelector("canvas");
    this.#set("mark", "");
    this.#set("values", "");
  }

  /** Keep what is newest. The hub tells it in order, so nothing is older than what is here. */
  take({ data, merged, gap, state, repeat }) {
    if (gap) [this.#gap, this.#gapUntil] = [gap, performance.now() + GAP_MS];
    if (state) this.isStale = state === "stale";
    if (!Number.isFinite(data?.price)) return;
    this.#data = data;
    if (!repeat) this.#stands += 1 + merged;
  }

  paint() {
    this.mark();
    if (!this.#data) return;
    const { price, bid, ask, volume } = this.#data;
    this.#first ??= price;
    this.#flash(direction(this.#shown ?? price, price));
    this.#shown = price;
    this.#set("price", priceText(price));
    const part = change(this.#first, price);
    this.#set("change", percentText(part));
    this.#set("bid", priceText(bid));
    this.#set("ask", priceText(ask));
    this.#set("volume", countText(volume));
    if (this.#stands) this.#set("values", `×${this.#stands}`);
    this.#stands = 0;
    const way = direction(0, part);
    if (this.#change.className !== way) this.#change.className = way;
  }

  /** Stale, or a gap of late. */
  mark() {
    const gap = performance.now() < this.#gapUntil ? `gap ${this.#gap}` : "";
    this.#set("mark", this.isStale ? "stale" : gap);
    if (this.element.classList.contains("stale") !== this.isStale) this.element.classList.toggle("stale", this.isStale);
  }

  /** One more point of the trend. */
  sample() {
    if (this.#shown === null) return;
    this.#trend.push(this.#shown);
    if (this.#trend.length > TREND) this.#trend.shift();
  }

  draw({ quiet, up, down }) {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (this.#trend.length < 2 || !width) return;
    fit(this.#canvas, width, height);
    const context = this.#canvas.getContext("2d");
    const [low, high] = [Math.min(...this.#trend), Math.max(...this.#trend)];
    const y = (price) => height - 2.5 - ((price - low) / (high - low || 1)) * (height - 5);
    const way = direction(this.#trend[0], this.#trend.at(-1));
    context.clearRect(0, 0, width, height);
    context.strokeStyle = this.isStale ? quiet : way === "down" ? down : way ? up : quiet;
    context.lineWidth = 1.25;
    context.lineJoin = "round";
    context.setLineDash(this.isStale ? [2, 3] : []);
    context.beginPath();
    const step = (width - 2) / (TREND - 1);
    this.#trend.forEach((price, i) => context.lineTo(1 + (TREND - this.#trend.length + i) * step, y(price)));
    context.stroke();
  }

  /** Only what differs is written: each write costs a layout of the table. */
  #set(column, text) {
    const node = this.#cells.get(column);
    if (node.data !== text) node.data = text;
  }

  /** The style sheet animates the class; Board takes it off when the animation ends, and until then it stays: at most
      three flashes a second are harmless to everybody (WCAG 2.2, 2.3.1). */
  #flash(way) {
    if (way && !this.#price.className) this.#price.className = way;
  }
}

/** The table. */
export class Board {
  #rows = new Map();
  #changed = new Set();
  #body;
  #template;
  #on;
  #query = "";
  #chosen = "";
  #colours = null;
  #stale = [];

  /** on: choose(symbol), remove(symbol), stale(symbols). */
  constructor(body, template, on) {
    [this.#body, this.#template, this.#on] = [body, template, on];
    body.addEventListener("animationend", (event) => (event.target.className = ""));
    body.addEventListener("click", ({ target }) => {
      const symbol = target.closest("tr")?.dataset.symbol;
      if (target.closest(".choose")) on.choose(symbol);
      if (target.closest(".remove")) on.remove(symbol);
    });
    setInterval(() => this.#sample(), TREND_MS);
  }

  get symbols() { return [...this.#rows.keys()]; }

  add(symbol) {
    const row = new Row(symbol, this.#template);
    this.#rows.set(symbol, row);
    this.#body.append(row.element);
    this.#shape(row);
  }

  /** Returns the button to which the focus goes that was on the line. */
  remove(symbol) {
    const row = this.#rows.get(symbol);
    const next = row.element.nextElementSibling ?? row.element.previousElementSibling;
    row.element.remove();
    this.#rows.delete(symbol);
    this.#changed.delete(row);
    return next?.querySelector(".remove");
  }

  take(value) {
    const row = this.#rows.get(value.symbol);
    if (!row) return;
    row.take(value);
    if (!this.#changed.size) requestAnimationFrame(() => this.#paint());
    this.#changed.add(row);
  }

  /** A new connection says anew what is stale. */
  forget() {
    for (const row of this.#rows.values()) row.isStale = false;
  }

  /** Show the lines only whose symbol has this in it. */
  filter(query) {
    this.#query = query;
    for (const row of this.#rows.values()) this.#shape(row);
  }

  /** This symbol's bars are shown. */
  choose(symbol) {
    this.#chosen = symbol;
    for (const row of this.#rows.values()) this.#shape(row);
  }

  /** The colours may be others now. */
  recolour() { this.#colours = null; }

  #shape({ symbol, element }) {
    element.hidden = !symbol.toUpperCase().includes(this.#query.toUpperCase());
    element.querySelector(".choose").setAttribute("aria-pressed", String(symbol === this.#chosen));
  }

  #paint() {
    const changed = [...this.#changed];
    this.#changed.clear();
    for (const row of changed) row.paint();
    const stale = this.symbols.filter((symbol) => this.#rows.get(symbol).isStale);
    if (stale.join() !== this.#stale.join()) this.#on.stale((this.#stale = stale));
  }

  #sample() {
    this.#colours ??= colours("quiet", "up", "down");
    for (const row of this.#rows.values()) {
      row.sample();
      row.mark();
      if (!document.hidden && !row.element.hidden) row.draw(this.#colours);
    }
  }
}
