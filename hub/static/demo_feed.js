/* The demo page's feed: the newest values of a list of symbols, at a rate, over whichever wire there is.

   Does: hold the list as one watch list with marks (hub/watch.py), where the hub has none each symbol by itself; change list,
   rate and fields while it runs, over a WebSocket in place, over other wires by another request; ask by polls, in the place of
   a phone that is slow; tell the hub's clock.
   Does not: show anything (demo_board.js), or connect (hub.js).
   Called by: demo.js.
   Never break: list and rate are here, not in the hub: what it has of them is gone with the connection, and told anew.
*/

export const EVERY = Infinity;
export const NAMESPACE = "ticker";
const LIST = `${NAMESPACE}:$watch`;
const EVERY_HZ = 1000; // as a rate it is the word for every value (hub/pace.py)
const COMPACT = ["price", "seq"];
/** A slow phone comes for values so often. */
export const SLOW_MS = 2000;

/** One update. merged: values since the one before that it stands for as well. gap: numbers that never left the source.
    state: "stale", "live", or "" where that has not changed. repeat: no new value. Times are the hub's, in ms since 1970.
    @typedef {{symbol: string, data: any, merged: number, gap: number, state: string, repeat: boolean, sourceMs: number,
      hubMs: number}} Value */

/** Nanoseconds as text, in milliseconds; NaN for what is none. A double keeps them to a quarter of a microsecond. */
export const msOf = (ns) => (typeof ns === "string" ? Number(ns) / 1e6 : NaN);

export class Feed {
  #hub;
  #on;
  #symbols;
  #hz;
  #compact;
  #seqs = new Map(); // the last number of each symbol, to count what is in between where the hub does not
  #isList = true; // until the hub has refused one
  #isLive = true; // what is asked can be changed in place
  #subs = new Map(); // by channel
  #slow = null; // ends the polls

  /** on: take(value), granted(hz), fault(text). */
  constructor(hub, { symbols, hz, compact }, on) {
    [this.#hub, this.#on, this.#symbols, this.#hz, this.#compact] = [hub, on, [...symbols], hz, compact];
  }

  /** A wire is about to be used. */
  use(wire) {
    const isLive = wire === "websocket";
    if (isLive === this.#isLive && this.#subs.size) return;
    this.#isLive = isLive;
    this.#renew();
  }

  /** Rates, fields and marks are had. */
  get isRich() { return this.#isList; }

  add(symbol) {
    if (this.#symbols.includes(symbol)) return;
    this.#symbols.push(symbol);
    if (this.#isList) this.#change("hub.watch", { add: [symbol] });
    else if (this.#hzNow) this.#single(symbol);
  }

  remove(symbol) {
    this.#symbols = this.#symbols.filter((one) => one !== symbol);
    this.#seqs.delete(symbol);
    if (this.#isList) return this.#change("hub.watch", { remove: [symbol] });
    const channel = `${NAMESPACE}:${symbol}`;
    this.#subs.get(channel)?.unsubscribe();
    this.#subs.delete(channel);
  }

  set hz(hz) {
    const before = this.#hzNow;
    this.#hz = hz;
    this.#pace(before);
  }

  /** Only the price of each value. It is asked for at the beginning of a subscription, so another one begins. */
  set compact(compact) {
    this.#compact = compact;
    if (this.#isList) this.#renew();
  }

  /** Be a phone that comes for values every SLOW_MS, by a request, instead of one that they are pushed to. */
  set slow(isSlow) {
    if (isSlow === Boolean(this.#slow)) return;
    const before = this.#hzNow;
    this.#slow?.abort();
    this.#slow = isSlow ? new AbortController() : null;
    if (isSlow) this.#poll(this.#slow.signal);
    this.#pace(before);
  }

  get #hzNow() { return this.#slow ? 0 : this.#hz; }

  #pace(before) {
    const hz = this.#hzNow;
    if (this.#isList) this.#change("hub.rate", { hz: hz === EVERY ? EVERY_HZ : hz });
    else if (!before !== !hz) this.#renew();
  }

  /** All that is asked of the list, at each beginning. */
  #wants() {
    const hz = this.#hzNow;
    return { symbols: this.#symbols, marks: true, ...(hz !== EVERY && { hz }), ...(this.#compact && { fields: COMPACT }) };
  }

  #renew() {
    for (const sub of this.#subs.values()) sub.unsubscribe();
    this.#subs.clear();
    // Paused it is only where a rate can be changed again: a request asks for more than nothing.
    if (this.#isList && (this.#isLive || this.#hzNow)) this.#follow(LIST, { data: () => this.#wants() });
    else if (!this.#isList && this.#hzNow) this.#symbols.forEach((symbol) => this.#single(symbol));
  }

  #single(symbol) { this.#follow(`${NAMESPACE}:${symbol}`); }

  #follow(channel, options) {
    const sub = this.#hub.subscribe(channel, options);
    this.#subs.set(channel, sub);
    sub.on("publication", (pub) => this.#take(channel, pub));
    sub.on("error", ({ message, code }) => {
      if (this.#subs.get(channel) !== sub) return;
      this.#subs.delete(channel);
      if (channel === LIST) {
        this.#isList = false;
        this.#renew();
      }
      this.#on.fault(channel === LIST ? "" : `${channel}: ${message} (${code})`);
    });
  }

  async #change(method, data) {
    if (!this.#isLive) return this.#renew();
    try {
      const { hz } = (await this.#hub.rpc(method, { channel: LIST, ...data })) ?? {};
      if (hz !== undefined) this.#on.granted(hz >= EVERY_HZ ? EVERY : hz);
    } catch (error) {
      // Without a connection the next one begins with all of it. With one, the list was not there yet, or is full.
      if (error.temporary) return;
      if (error.code === LIMIT_EXCEEDED) this.#on.fault(error.message);
      else this.#renew();
    }
  }

  #take(channel, { data, tags = {} }) {
    const symbol = (tags.channel ?? channel).slice(NAMESPACE.length + 1);
    if (!this.#symbols.includes(symbol)) return; // taken out a moment ago
    const [seq, last] = [data?.seq, this.#seqs.get(symbol)];
    this.#seqs.set(symbol, seq);
    const passed = seq > last ? seq - last - 1 : 0;
    this.#on.take({
      symbol,
      data,
      merged: tags.merged === undefined ? passed : Number(tags.merged),
      gap: Number(tags.gap ?? 0),
      state: tags.state ?? "",
      repeat: tags.repeat === "1",
      sourceMs: msOf(tags.time ?? data?.time_ns),
      hubMs: msOf(tags.hub),
    });
  }

  /** The polls of a slow phone. A socket that a page does not read backs up in the browser first, which reads megabytes
      ahead, so the values would be old by the browser's doing; who polls late is late by its own. */
  async #poll(signal) {
    let cursor = "";
    while (!signal.aborted) {
      const query = new URLSearchParams(this.#symbols.map((symbol) => ["channel", `${NAMESPACE}:${symbol}`]));
      query.set("wait", "0");
      try {
        const headers = cursor ? { "Last-Event-ID": cursor } : {};
        const response = this.#symbols.length && (await fetch(`/poll?${query}`, { signal, headers, cache: "no-store" }));
        const { messages = [] } = response.status === 200 ? await response.json() : {};
        if (signal.aborted) return;
        for (const { channel, pub } of messages) this.#take(channel, pub);
        cursor = response ? response.headers.get("Hub-Cursor") ?? cursor : "";
      } catch (error) {
        if (signal.aborted) return; // else the network or the hub is away, and the next poll tries again
      }
      await new Promise((resolve) => setTimeout(resolve, SLOW_MS));
    }
  }
}

const LIMIT_EXCEEDED = 106;

const SAMPLES = 5;
const AGAIN_MS = 60_000;

/** How far the hub's clock is ahead of ours, by its method hub.time. */
export class Clock {
  #hub;
  #timer;
  #turn = {};
  #offsetMs = NaN;
  constructor(hub) { this.#hub = hub; }

  /** The hub's time, in ms since 1970; NaN until it is known. */
  get nowMs() { return performance.timeOrigin + performance.now() + this.#offsetMs; }

  /** Ask now, and from time to time, as clocks drift. The answer that took the shortest is the best one: it is off by
      half of the time that it took at most. */
  async set() {
    clearTimeout(this.#timer);
    const turn = (this.#turn = {});
    let shortest = Infinity;
    try {
      for (let i = 0; i < SAMPLES; i += 1) {
        const asked = performance.now();
        const { time_ns } = await this.#hub.rpc("hub.time", {});
        const answered = performance.now();
        if (turn !== this.#turn) return;
        if (answered - asked >= shortest) continue;
        shortest = answered - asked;
        this.#offsetMs = msOf(time_ns) - performance.timeOrigin - (asked + answered) / 2;
      }
      this.#timer = setTimeout(() => this.set(), AGAIN_MS);
    } catch (error) {
      if (turn === this.#turn && !error.temporary) this.#offsetMs = NaN; // with the next connection it is asked again
    }
  }
}

const [SLOTS, STEP] = [60, Math.log(1.03)];

/** Durations of the last minute in ms, to 3 %: a histogram for each second. */
export class Durations {
  #slots = Array.from({ length: SLOTS }, () => new Uint32Array(400)); // up to two minutes
  #second = 0;

  add(ms, nowMs = performance.now()) {
    this.#turn(nowMs);
    const bucket = Math.min(399, Math.round(Math.log(1 + Math.max(0, ms)) / STEP));
    this.#slots[this.#second % SLOTS][bucket] += 1;
  }

  /** The values that so many of all, 0 to 1, are below; null where there are none. */
  quantiles(parts, nowMs = performance.now()) {
    this.#turn(nowMs);
    const sums = new Uint32Array(400);
    for (const slot of this.#slots) for (let i = 0; i < 400; i += 1) sums[i] += slot[i];
    const total = sums.reduce((a, b) => a + b, 0);
    if (!total) return null;
    return parts.map((part) => {
      let [left, bucket] = [part * total, 0];
      while (bucket < 399 && (left -= sums[bucket]) > 0) bucket += 1;
      return Math.exp(bucket * STEP) - 1;
    });
  }

  #turn(nowMs) {
    const second = Math.floor(nowMs / 1000);
    for (let at = Math.max(this.#second + 1, second - SLOTS + 1); at <= second; at += 1) this.#slots[at % SLOTS].fill(0);
    this.#second = second;
  }
}
