/* The admin page's charts: lines, or areas on top of each other, over the last five minutes, on a canvas.

   Does: keep values by series and time, draw them, say the newest in words.
   Does not: know what the figures mean (admin.js).
   Never break: what is kept is bounded by SPAN_MS and MAX_SERIES; a name is text, wherever it comes from. */

export const SPAN_MS = 300_000;
const MAX_SERIES = 64;
const COLOURS = 8; // .ink-0 … of admin.css; then they come again
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 6, 8, 20];
const MOST_LINES = 4; // of the grid, besides that of 0

/** The smallest of 1, 2, 2.5, 5, 10, 20 … that is no less; of bytes, of such numbers of KB or MB. */
function roundUp(value, base) {
  const unit = base ** Math.floor(Math.log(value) / Math.log(base) + 1e-9);
  const power = 10 ** Math.floor(Math.log10(value / unit) + 1e-9) * unit;
  return [1, 2, 2.5, 5, 10].find((step) => step * power >= value * 0.9999) * power;
}

/** Colours of the page as a canvas takes them: what light-dark() gives is known of elements only. */
function colours(canvas) {
  const probe = document.createElement("span");
  canvas.parentElement.append(probe);
  const of = (name) => {
    probe.className = `ink-${name}`;
    return getComputedStyle(probe).color;
  };
  const found = { line: of("line"), quiet: of("quiet"), series: Array.from({ length: COLOURS }, (_, i) => of(i)) };
  probe.remove();
  return found;
}
let inks = null; // the same for all charts, until the scheme changes
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (inks = null));

export class Chart {
  #sets = new Map(); // by what they split: name -> [[ms, value], …]
  #series = new Map(); // the set that is shown
  #canvas;
  #now;
  #legend;
  #hover = null;

  /** figure: a .chart; format(value) -> text; stacked: series are parts of a whole; total(values) -> what stands in the head. */
  constructor(figure, { title, format, stacked = false, total = (values) => Math.max(...values), least = 1, base = 10 }) {
    Object.assign(this, { title, format, stacked, total, least, base });
    [this.#canvas, this.#now, this.#legend] = ["canvas", ".now", ".legend"].map((one) => figure.querySelector(one));
    figure.querySelector(".name").textContent = title;
    this.#canvas.addEventListener("pointermove", ({ offsetX }) => this.#point(offsetX));
    this.#canvas.addEventListener("pointerleave", () => this.#point(null));
  }

  #point(x) {
    this.#hover = x;
    this.draw(this.drawnAt ?? Date.now());
  }

  /** Values of one set at a time, by series; null: not known. What is too old is forgotten. */
  add(set, ms, values) {
    const series = this.#set(set);
    for (const [name, value] of Object.entries(values)) {
      if (!series.has(name) && series.size >= MAX_SERIES) continue;
      if (!series.has(name)) series.set(name, []);
      series.get(name).push([ms, value]);
    }
    for (const [name, points] of series) {
      while (points.length && points[0][0] < ms - SPAN_MS - 2000) points.shift();
      if (!points.length) series.delete(name);
    }
  }

  #set(set) {
    if (!this.#sets.has(set)) this.#sets.set(set, new Map());
    return this.#sets.get(set);
  }

  /** Draw this set from now on. */
  show(set) { this.#series = this.#set(set); }

  /** Draw what is known at `ms`. */
  draw(ms) {
    this.drawnAt = ms;
    const names = [...this.#series.keys()].sort();
    this.#paint(names, ms);
    this.#say(names, ms);
  }

  #paint(names, ms) {
    const canvas = this.#canvas;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    inks ??= colours(canvas);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `${style.fontSize} ${style.fontFamily}`;

    const lines = this.#lines(names);
    const highest = lines.reduce((all, { tops }) => tops.reduce((most, [, top]) => Math.max(most, top), all), this.least) * 1.05;
    const step = roundUp(highest / MOST_LINES, this.base);
    const most = Math.ceil(highest / step) * step;
    const x = (at) => LEFT + (1 - (ms - at) / SPAN_MS) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / most) * (height - TOP - BOTTOM);
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    for (let value = 0; value <= most; value += step) {
      const at = Math.round(y(value)) + 0.5;
      pen.strokeStyle = inks.line;
      pen.beginPath();
      pen.moveTo(LEFT, at);
      pen.lineTo(width - RIGHT, at);
      pen.stroke();
      pen.fillStyle = inks.quiet;
      pen.textAlign = "right";
      pen.fillText(this.format(value), LEFT - 6, at);
    }
    pen.textBaseline = "alphabetic";
    for (const minute of [0, 1, 2, 3, 4]) {
      pen.textAlign = minute ? "center" : "right";
      pen.fillText(minute ? `−${minute} min` : "now", x(ms - minute * 60_000), height - 4);
    }

    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT - RIGHT, height);
    pen.clip();
    for (const { name, tops, floors } of lines.reverse()) {
      pen.strokeStyle = pen.fillStyle = inks.series[names.indexOf(name) % COLOURS];
      pen.lineWidth = 1.75;
      pen.lineJoin = "round";
      pen.beginPath();
      tops.forEach(([at, top], i) => (i ? pen.lineTo(x(at), y(top)) : pen.moveTo(x(at), y(top))));
      pen.stroke();
      if (!this.stacked && names.length > 1) continue;
      for (let i = tops.length - 1; i >= 0; i -= 1) pen.lineTo(x(tops[i][0]), y(floors?.[i] ?? 0));
      pen.globalAlpha = this.stacked ? 0.45 : 0.14;
      pen.fill();
      pen.globalAlpha = 1;
    }
    if (this.#hover !== null && this.#hover > LEFT) {
      pen.strokeStyle = inks.quiet;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(this.#hover, TOP);
      pen.lineTo(this.#hover, height - BOTTOM);
      pen.stroke();
    }
    pen.restore();
  }

  /** What is drawn: each series' points, on top of those before where they are stacked. */
  #lines(names) {
    const sums = new Map(); // by time
    return names.map((name) => {
      const points = this.#series.get(name).filter(([, value]) => value !== null);
      if (!this.stacked) return { name, tops: points };
      const floors = points.map(([at]) => sums.get(at) ?? 0);
      const tops = points.map(([at, value], i) => [at, floors[i] + value]);
      for (const [at, top] of tops) sums.set(at, top);
      return { name, tops, floors };
    });
  }

  /** Names and values, of now or of where the pointer is. */
  #say(names, ms) {
    const width = this.#canvas.clientWidth;
    const looked = this.#hover !== null && this.#hover > LEFT;
    const at = looked ? ms - (1 - (this.#hover - LEFT) / (width - LEFT - RIGHT)) * SPAN_MS : ms;
    const values = names.map((name) => {
      const points = this.#series.get(name);
      const near = looked ? points.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best)) : points.at(-1);
      return near && Math.abs(near[0] - at) < 5000 ? near[1] : null;
    });
    const known = values.filter((value) => value !== null);
    const text = known.length ? this.format(this.total(known)) : "–";
    this.#now.textContent = text;
    this.#legend.replaceChildren(...(names.length > 1 ? names : []).map((name, i) => {
      const part = document.createElement("span");
      const mark = document.createElement("i");
      mark.className = `ink-${i % COLOURS}`;
      part.append(mark, `${name} ${values[i] === null ? "–" : this.format(values[i])}`);
      return part;
    }));
    this.#canvas.setAttribute("aria-label", `${this.title}: ${text} now`);
  }
}
