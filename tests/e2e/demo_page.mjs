/* The demo page in a real Chromium: one scenario for each test of test_demo_page.py.

   Run: node demo_page.mjs SCENARIO URL [ARGUMENT]; exit status 0, or 1 with what was not so on standard error.
   Never break: each wait is bounded by DEADLINE_MS; a fault on any page (FAULTS) fails the scenario, whatever it was about.
*/

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const DEADLINE_MS = 30_000;
const PHONE = { width: 360, height: 740 };
const TARGET = 44; // CSS pixels; WCAG 2.2, 2.5.5
/** Without the sandbox (tests may run as root), without a graphics card, and without calls to the browser's maker. */
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const CONTROLS = ["button", "textbox", "combobox", "slider", "switch", "radio", "link", "checkbox", "DisclosureTriangle"];

/** Errors, warnings of the console and requests to elsewhere, of all pages. */
const FAULTS = [];

/** What the browser itself reports of a connection that failed. */
const isExpected = (message) => /^WebSocket connection to|^Failed to load resource: net::ERR_CONNECTION/.test(message.text());

/** A page that is connected; `prepare(page)` is called before it is loaded. */
async function visit({ prepare = () => {}, path = "", context = browser } = {}) {
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  page.on("pageerror", (error) => FAULTS.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !isExpected(message)) FAULTS.push(message.text());
  });
  page.on("request", (request) => request.url().startsWith(url) || FAULTS.push(`a request to ${request.url()}`));
  await prepare(page);
  await page.goto(url + path);
  await page.waitForSelector("body[data-state=connected]");
  return page;
}

/** The same once it shows a price for each symbol, where a source runs. */
async function open(prepare, path) {
  const page = await visit({ prepare, path });
  await page.waitForFunction(() => [...document.querySelectorAll("[data-column=price]")].every((cell) => /\d/.test(cell.textContent)));
  return page;
}

const cell = (symbol, column) => `[data-symbol=${symbol}] [data-column=${column}]`;
const ACME = cell("ACME", "price");
const shows = (page, selector, text) =>
  page.waitForFunction(([selector, text]) => document.querySelector(selector)?.textContent === text, [selector, text]);
const symbolsOf = (page) => page.$$eval("#rows tr", (rows) => rows.map((row) => row.dataset.symbol));

/** Wait until ACME's price isn't the one that it is now. */
async function acmeMoves(page) {
  const before = await page.textContent(ACME);
  await page.waitForFunction(([cell, text]) => document.querySelector(cell).textContent !== text, [ACME, before]);
}

/** Wait until so many updates a second are shown. */
const rateIs = (page, least, most) =>
  page.waitForFunction(([least, most]) => {
    const rate = Number(document.getElementById("rate").textContent);
    return rate >= least && rate <= most;
  }, [least, most]);

/** From here on the page notes the states that its connection goes through, in `states`. */
async function noteStates(page) {
  await page.evaluate(() => {
    globalThis.states = [];
    const note = () => states.push(document.body.dataset.state);
    new MutationObserver(note).observe(document.body, { attributeFilter: ["data-state"] });
  });
}

const hasComeBack = () => states.includes("waiting") && states.at(-1) === "connected";

/** Who publishes in the source's place: `argument` is its JSON, {url, key, workers}. */
class Backend {
  seq = 0;
  constructor({ url, key }) { [this.url, this.key] = [url, key]; }

  async publish(channel, data) {
    const headers = { "X-API-Key": this.key, "Content-Type": "application/json" };
    const response = await fetch(`${this.url}/publish`, { method: "POST", headers, body: JSON.stringify({ channel, data }) });
    assert.equal((await response.json()).error, undefined);
  }

  tick(symbol, price, seq = (this.seq += 1)) {
    this.seq = seq;
    return this.publish(`ticker:${symbol}`, { symbol, price, bid: price, ask: price, volume: 1, seq, time_ns: `${Date.now()}000000` });
  }

  /** Bar number `at` of ACME, made of ten ticks. skipped: ticks before it that no bar has. */
  bar(at, { interval = "1s", skipped = 0 } = {}) {
    const time_ns = `${1_700_000_000 + at}000000000`;
    const [first_seq, last_seq] = [at * 10 + 1 + skipped, at * 10 + 10];
    const prices = { open: 100 + at, high: 103 + at, low: 99 + at, close: 101 + at };
    return this.publish(`bars:${interval}:ACME`, { symbol: "ACME", interval, time_ns, ...prices, volume: 50, count: 10, first_seq, last_seq, final: true });
  }
}

// What runs in the page before its own script does. Routing its messages through this process would be slow at their rate.

/** Keep the page's sockets in `sockets`, so that one can be told of an end that the hub has no reason for. */
function keepSockets() {
  globalThis.sockets = [];
  globalThis.WebSocket = class extends WebSocket {
    constructor(url) {
      super(url);
      sockets.push(this);
    }
  };
}

/** Answer the first two subscriptions to the watch list in the hub's place, with a temporary error. */
function refuseList() {
  globalThis.refusals = 0;
  const refuse = (socket, line) => {
    refusals += 1;
    const reply = { id: JSON.parse(line).id, error: { code: 100, message: "", temporary: true } };
    socket.onmessage(new MessageEvent("message", { data: JSON.stringify(reply) }));
  };
  globalThis.WebSocket = class extends WebSocket {
    send(message) {
      for (const line of message.split("\n")) {
        if (line.includes('"subscribe"') && line.includes("ticker:$watch") && refusals < 2) refuse(this, line);
        else super.send(line);
      }
    }
  };
}

/** Hold the first subscription to bars back until `release()`. */
function holdBars() {
  globalThis.held = null;
  globalThis.WebSocket = class extends WebSocket {
    send(message) {
      if (held || !message.includes('"subscribe":{"channel":"bars:')) return super.send(message);
      held = message;
      globalThis.release = () => super.send(message);
    }
  };
}

// The scenarios, with a source.

async function prices() {
  const page = await open();
  await acmeMoves(page);
  await acmeMoves(page);
  await rateIs(page, 1, Infinity);
  for (const [way, sign] of [["up", "+"], ["down", "−"]]) {
    await page.waitForSelector(`[data-column=price].${way}`); // the flash
    // Found and read in one step, as the next price may turn it.
    const text = await page.waitForFunction((way) => document.querySelector(`[data-column=change].${way}`)?.textContent, way);
    assert.equal((await text.jsonValue())[0], sign);
  }
  // Of the two clocks of one machine: well below a minute, and not before the value was made.
  const median = await page.waitForFunction(() => /^([\d.]+) ms$/.exec(document.getElementById("median").textContent)?.[1]);
  assert.ok(Number(await median.jsonValue()) > 0);
  await page.waitForFunction(() => {
    const canvas = document.querySelector("[data-symbol=ACME] canvas");
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte);
  });
}

async function reaches(screenshot) {
  const page = await open((page) => page.setViewportSize({ width: 1280, height: 800 }));
  await page.screenshot({ path: screenshot });
  const live = await page.$$eval("[aria-live], [role=status], [role=log], [role=alert], output", (all) => all.map((one) => one.id));
  assert.deepEqual(live, ["state", "said"]); // no price
  // By role and name, as a screen reader finds them.
  await page.getByRole("table", { name: "Watch list" }).waitFor();
  await page.getByRole("rowheader", { name: "ACME" }).waitFor();
  await page.getByRole("columnheader", { name: "Price" }).waitFor();
  await page.click("summary:has-text('Bars as a table')");

  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send("Accessibility.getFullAXTree");
  const controls = nodes.filter(({ ignored, role }) => !ignored && CONTROLS.includes(role?.value));
  assert.deepEqual(controls.filter(({ name }) => !name?.value.trim()).map(({ role }) => role.value), [], "controls without a name");
  const names = controls.map(({ role, name }) => `${role.value} ${name.value}`);
  for (const name of ["combobox Find or add a symbol", "slider Rate", "switch Slow phone", "radio 1 min", "button Remove ACME"]) {
    assert.ok(names.includes(name), `${name} is not among ${names}`);
  }
  assert.ok(names.some((name) => name.startsWith("slider Bar of ACME")), String(names));

  await page.emulateMedia({ reducedMotion: "reduce" });
  await page.evaluate(() => document.querySelector("[data-column=price]").classList.add("up"));
  assert.equal(await page.$eval("[data-column=price].up", (one) => getComputedStyle(one).animationName), "none");
}

async function fitsPhones() {
  const page = await open((page) => page.setViewportSize(PHONE));
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), PHONE.width);
  }
  await page.click("summary:has-text('What is this?')");
  await page.click("summary:has-text('Bars as a table')");
  await page.check("#slow"); // brings a line of text
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), PHONE.width);
  // A switch and a radio have their labels, which is where one touches them.
  const small = await page.$$eval("button, input[type=text], input[type=range], label:has(input), summary", (all, least) =>
    all.map((one) => [one.textContent.trim() || one.id, one.getBoundingClientRect()])
      .filter(([, { width, height }]) => width && (height < least || width < least))
      .map(([name, { width, height }]) => `${name}: ${width} x ${height}`), TARGET);
  assert.deepEqual(small, []);
  // No cell is cut off.
  const cut = await page.$$eval("#rows td, #rows th", (all) => all.filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent));
  assert.deepEqual(cut, []);
  await page.evaluate(() => scrollTo(0, 0));
  await page.click("[data-symbol=APEX] .choose");
  await page.waitForFunction(() => document.querySelector(".bars").getBoundingClientRect().top < innerHeight / 2);
}

async function changesList() {
  const page = await open();
  await page.fill("#query", "ap");
  assert.deepEqual(await page.$$eval("#rows tr:not([hidden])", (rows) => rows.map((row) => row.dataset.symbol)), ["APEX"]);
  await page.fill("#query", "apex");
  await page.press("#query", "Enter"); // in the list already: its bars
  await shows(page, "#chart-title", "APEX");
  const before = await symbolsOf(page);
  for (const symbol of ["ACME", "ZEPHYR"]) await page.click(`[aria-label="Remove ${symbol}"]`);
  await page.waitForFunction(() => document.getElementById("said").textContent.includes("ZEPHYR removed"));
  await page.fill("#query", "acme");
  await page.press("#query", "Enter");
  assert.equal(await page.inputValue("#query"), "");
  await page.waitForFunction((price) => /\d/.test(document.querySelector(price).textContent), ACME);
  await acmeMoves(page);
  await page.fill("#query", "not a name");
  await page.press("#query", "Enter");
  const expected = [...before.filter((symbol) => symbol !== "ACME" && symbol !== "ZEPHYR"), "ACME"];
  assert.deepEqual(await symbolsOf(page), expected);
  await page.reload();
  await acmeMoves(page);
  assert.deepEqual(await symbolsOf(page), expected);
  assert.equal(await page.textContent("#chart-title"), "APEX");
  for (const rubbish of ["{", "7", '{"symbols":[1,"<b>","ACME"],"stop":99,"interval":"x"}']) {
    await page.evaluate((rubbish) => localStorage.setItem("hub.demo", rubbish), rubbish);
    await page.reload();
    await acmeMoves(page);
    await shows(page, "#hz-text", "every value");
  }
  assert.deepEqual(await symbolsOf(page), ["ACME"]);
}

/** 20 symbols, each 12 or so values a second. */
async function changesRate() {
  const page = await open();
  await rateIs(page, 100, Infinity);
  await page.focus("#hz");
  for (let i = 0; i < 5; i += 1) await page.keyboard.press("ArrowLeft");
  assert.equal(await page.getAttribute("#hz", "aria-valuetext"), "1 per second");
  await rateIs(page, 10, 21);
  await page.waitForFunction((cell) => Number(document.querySelector(cell).textContent.slice(1)) > 4, cell("ACME", "values"));
  await page.waitForFunction(() => parseInt(document.getElementById("merged").textContent) > 50);
  await page.reload();
  await rateIs(page, 10, 21);
  assert.equal(await page.textContent("#hz-text"), "1 per second");
  await page.focus("#hz");
  await page.keyboard.press("End");
  await rateIs(page, 100, Infinity);
}

async function changesFields() {
  const frames = [];
  const page = await open((page) => page.on("websocket", (socket) => socket.on("framereceived", ({ payload }) => frames.push(payload))));
  assert.ok(await page.isVisible(cell("ACME", "bid")));
  await page.check("#compact");
  await page.waitForSelector(cell("ACME", "bid"), { state: "hidden" });
  // The columns go at once, the wish needs a round trip; what is on its way meanwhile is whole.
  const prices = () => frames.map(String).filter((text) => text.includes('"ticker:')).at(-1) ?? ""; // not of a bar by itself
  const isNarrow = () => prices().includes('"price"') && !prices().includes('"bid"');
  for (let moves = 0; moves < 20 && !isNarrow(); moves += 1) await acmeMoves(page);
  frames.length = 0;
  for (let moves = 0; moves < 20 && !prices(); moves += 1) await acmeMoves(page);
  assert.ok(isNarrow(), prices());
  await page.uncheck("#compact");
  await page.waitForSelector(cell("ACME", "bid"));
  await acmeMoves(page);
}

async function slow() {
  const page = await open();
  // When the browser sent them, as we may be told late.
  const polls = () => page.evaluate(() => performance.getEntriesByType("resource").filter(({ name }) => name.includes("/poll?")).map(({ startTime }) => startTime));
  await page.check("#slow");
  assert.ok(await page.isDisabled("#hz") && (await page.textContent("#note")).includes("every 2 s"));
  await rateIs(page, 1, 21);
  await page.waitForFunction((cell) => Number(document.querySelector(cell).textContent.slice(1)) > 8, cell("ACME", "values"));
  await page.waitForFunction(() => performance.getEntriesByType("resource").filter(({ name }) => name.includes("/poll?")).length > 3);
  const times = await polls();
  for (let i = 1; i < 4; i += 1) assert.ok(times[i] - times[i - 1] > 1990, String(times));
  await page.uncheck("#slow");
  const end = await page.evaluate(() => performance.now());
  await rateIs(page, 100, Infinity); // that takes longer than until the next poll
  assert.ok((await polls()).every((time) => time < end));
  assert.ok(!(await page.isDisabled("#hz")));
}

async function keys() {
  const page = await open();
  const focus = () => page.evaluate(() => {
    const { id, value, type, className } = document.activeElement;
    return id || (type === "radio" ? value : className || document.activeElement.tagName);
  });
  const next = async (wanted) => {
    await page.keyboard.press("Tab");
    assert.equal(await focus(), wanted);
    assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement.type === "radio" ? document.activeElement.nextElementSibling : document.activeElement).outlineStyle), "none");
  };
  await next("query");
  await page.keyboard.type("NEWONE");
  await page.keyboard.press("Enter");
  await page.waitForSelector("[data-symbol=NEWONE]");
  await page.keyboard.press("Tab"); // Add
  await next("hz");
  await page.keyboard.press("Home");
  await shows(page, "#hz-text", "paused");
  await next("pause");
  await page.keyboard.press("Space");
  assert.equal(await page.getAttribute("#pause", "aria-pressed"), "false");
  await next("compact");
  await page.keyboard.press("Space");
  assert.ok(await page.isChecked("#compact"));
  await next("slow");
  await next("choose");
  await next("remove");
  await page.keyboard.press("Enter");
  await page.waitForSelector("[data-symbol=ACME]", { state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Remove APEX"); // not lost
  await page.focus("[data-symbol=BOREAL] .choose");
  await page.keyboard.press("Enter");
  await shows(page, "#chart-title", "BOREAL");
  await page.focus("[data-symbol=NEWONE] .remove");
  await next("1s");
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.getAttribute("#chart", "aria-label"), "Bar of BOREAL, one minute");
  await next("chart");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".scroll:visible");
}

async function reconnects(workers) {
  const sent = [];
  const page = await open((page) => page.on("websocket", (socket) => socket.on("framesent", ({ payload }) => sent.push(String(payload)))));
  await page.click('[aria-label="Remove APEX"]');
  await page.focus("#hz");
  for (let i = 0; i < 4; i += 1) await page.keyboard.press("ArrowLeft");
  await rateIs(page, 20, 40);
  const before = await page.textContent("#detail");
  await noteStates(page);
  sent.length = 0;
  for (const pid of workers.split(",")) process.kill(Number(pid), "SIGKILL");
  await page.waitForFunction(hasComeBack);
  assert.notEqual(await page.textContent("#detail"), before);
  await acmeMoves(page);
  await rateIs(page, 20, 40);
  const lines = sent.flatMap((frame) => frame.split("\n")).map((line) => JSON.parse(line));
  const { hz, symbols } = lines.findLast(({ subscribe }) => subscribe?.channel === "ticker:$watch").subscribe.data;
  assert.equal(hz, 2);
  assert.deepEqual(symbols, await symbolsOf(page));
  assert.ok(!symbols.includes("APEX") && symbols.length === 19);
}

async function otherWires() {
  for (const [wire, word] of [["sse", "event stream"], ["poll", "polls"]]) {
    const page = await open(undefined, `?wire=${wire}`);
    assert.ok((await page.textContent("#detail")).startsWith(word));
    assert.equal(await page.textContent("#note"), "");
    await acmeMoves(page);
    await page.fill("#hz", "2"); // one a second of each of twenty symbols, once those that came before are out of the mean
    await rateIs(page, 5, 30);
    await page.check("#compact");
    assert.equal(await page.getAttribute("body", "data-fields"), "compact");
    await acmeMoves(page);
    await page.click('[aria-label="Remove APEX"]');
    await page.click("#pause");
    const still = await page.waitForFunction(() => document.getElementById("rate").textContent === "0" && document.querySelector("[data-symbol=ACME] [data-column=price]").textContent);
    assert.equal(await page.textContent(ACME), await still.jsonValue());
    await page.click("#pause");
    await acmeMoves(page);
    await page.close();
  }
}

async function obeys() {
  const page = await open(async (page) => {
    await page.clock.install();
    await page.addInitScript(keepSockets);
  });
  const now = await page.evaluate(() => Date.now());
  await page.clock.pauseAt(now + 20_000); // no wait of the page's own ends any more
  await page.evaluate(() => sockets[0].onclose(new CloseEvent("close", { code: 3001, reason: "shutdown" })));
  assert.match(await page.textContent("#detail"), /^in \d+ s \(3001 shutdown\)$/);
  await page.evaluate(() => dispatchEvent(new Event("online")));
  await page.waitForSelector("body[data-state=connected]");
  await page.evaluate(() => sockets[1].onclose(new CloseEvent("close", { code: 3503, reason: "force disconnect" })));
  assert.match(await page.textContent("#detail"), /^3503 force disconnect/);
  await page.clock.fastForward(3_600_000);
  assert.equal(await page.getAttribute("body", "data-state"), "closed");
  assert.equal(await page.evaluate(() => sockets.length), 2);
}

async function missesPings() {
  const page = await open(async (page) => {
    await page.clock.install();
    await page.addInitScript(keepSockets);
  });
  await noteStates(page);
  await page.evaluate(() => (sockets[0].onmessage = null)); // as if nothing came any more
  await page.clock.fastForward(120_000);
  await page.waitForFunction(hasComeBack);
}

async function triesAgain() {
  const page = await open((page) => page.addInitScript(refuseList));
  assert.equal(await page.evaluate(() => refusals), 2); // and yet `open` has seen ACME's price
}

/** Of a page that painted each price, or fell behind, timers would be late. */
async function keepsUp() {
  const page = await open();
  await noteStates(page);
  // Less than 1,000: on a busy machine the source itself is late.
  await rateIs(page, 800, Infinity);
  const lateMs = await page.evaluate(async () => {
    const late = [];
    for (let i = 0; i < 150; i += 1) {
      const start = performance.now();
      await new Promise((resolve) => setTimeout(resolve, 20));
      late.push(performance.now() - start - 20);
    }
    return late.sort((a, b) => a - b)[75];
  });
  assert.ok(lateMs < 16, `half of the timers are over ${lateMs} ms late`);
  assert.deepEqual(await page.evaluate(() => states), [], "the connection was lost");
}

// The scenarios in which we are the source.

async function pauses(argument) {
  const backend = new Backend(JSON.parse(argument));
  await backend.tick("ACME", 100);
  const [page, other] = [await visit(), await visit()];
  await shows(page, ACME, "100.00");
  await page.click("#pause");
  await shows(page, "#hz-text", "paused");
  for (const price of [101, 102, 103]) {
    await backend.tick("ACME", price);
    await shows(other, ACME, `${price}.00`); // so it would be here as well
  }
  assert.equal(await page.textContent(ACME), "100.00");
  await page.click("#pause");
  await shows(page, ACME, "103.00");
  assert.equal(await page.textContent(cell("ACME", "values")), "×3");
  await backend.tick("ACME", 104);
  await shows(page, ACME, "104.00");
}

/** The hub's stale_ms is 500. */
async function marks(argument) {
  const backend = new Backend(JSON.parse(argument));
  await backend.tick("ACME", 100);
  const page = await visit();
  await shows(page, cell("ACME", "mark"), "stale");
  await page.waitForFunction(() => document.getElementById("said").textContent === "ACME is stale");
  assert.equal(await page.textContent(ACME), "100.00"); // the last value stays
  assert.equal(await page.textContent(cell("APEX", "mark")), "");
  await page.waitForSelector("[data-symbol=ACME].stale");
  await backend.tick("ACME", 101, backend.seq + 4);
  await shows(page, ACME, "101.00");
  await page.waitForFunction((mark) => document.querySelector(mark).textContent !== "stale", cell("ACME", "mark"));
  // 500 ms later it is stale again, unless it is heard: meanwhile the gap of three is told.
  const beat = setInterval(() => backend.tick("ACME", 101), 100);
  await page.waitForFunction((mark) => {
    const cell = document.querySelector(mark);
    return cell.textContent === "gap 3" && !cell.closest(".stale");
  }, cell("ACME", "mark"));
  clearInterval(beat);
}

async function bars(argument) {
  const backend = new Backend(JSON.parse(argument));
  for (let at = 0; at < 6; at += 1) await backend.bar(at);
  const page = await visit({ prepare: (page) => page.addInitScript(holdBars) });
  await shows(page, "#bars-state", "6 bars, no gap");
  await page.waitForFunction(() => held);
  await backend.bar(6); // between what is loaded and what is followed
  await page.evaluate(() => release());
  await shows(page, "#bars-state", "7 bars, no gap");
  await noteStates(page);
  // What is published while there is no connection is not missing.
  for (const pid of JSON.parse(argument).workers) process.kill(pid, "SIGKILL");
  await page.waitForFunction(() => states.includes("waiting"));
  for (let at = 7; at < 12; at += 1) {
    for (;;) {
      try {
        await backend.bar(at);
        break;
      } catch (error) {
        if (!String(error).includes("fetch failed")) throw error; // until a worker is back
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }
  await shows(page, "#bars-state", "12 bars, no gap");
  await page.click("summary:has-text('Bars as a table')");
  await page.waitForFunction(() => document.querySelectorAll("#bars tr").length === 12);
  const table = await page.$$eval("#bars tr", (rows) => rows.map((row) => [...row.cells].slice(1).map((one) => one.textContent)));
  assert.deepEqual(table, Array.from({ length: 12 }, (_, i) => 11 - i).map((at) => [...[100, 103, 99, 101].map((price) => (price + at).toFixed(2)), "50", ""]));
  // By keys, as a screen reader has it.
  await page.focus("#chart");
  await page.keyboard.press("Home");
  await page.waitForFunction(() => /open 100\.00, high 103\.00, low 99\.00, close 101\.00, volume 50, 10 ticks$/.test(document.getElementById("chart").getAttribute("aria-valuetext")));
  await page.keyboard.press("ArrowRight");
  await page.waitForFunction(() => document.getElementById("legend").textContent.includes("open 101.00"));
  assert.ok(await page.$eval("#chart", (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte)));
  await backend.bar(12, { skipped: 4 }); // ticks that no bar has
  await shows(page, "#bars-state", "13 bars, 1 gap");
  await page.click("text=1 min");
  await shows(page, "#bars-state", "0 bars, no gap");
  await backend.bar(0, { interval: "1m" });
  await shows(page, "#bars-state", "1 bars, no gap");
  await page.click("text=1 s");
  await shows(page, "#bars-state", "13 bars, 1 gap");
}

async function bare(argument) {
  const backend = new Backend(JSON.parse(argument));
  await backend.tick("ACME", 100);
  const page = await visit();
  await shows(page, ACME, "100.00");
  await backend.tick("ACME", 101);
  await shows(page, ACME, "101.00");
  assert.ok(await page.isDisabled("#hz") && (await page.textContent("#note")).includes("each symbol comes as it is"));
  await page.waitForFunction(() => document.getElementById("no-bars").textContent.startsWith("No bars here"));
  assert.ok(await page.isHidden("#chart"));
}

async function measures() {
  const page = await visit();
  const found = await page.evaluate(async () => {
    const { Durations } = await import("/static/demo_feed.js");
    const durations = new Durations();
    const none = durations.quantiles([0.5], 0);
    for (let ms = 1; ms <= 1000; ms += 1) durations.add(ms, 5000);
    const all = durations.quantiles([0.5, 0.99], 64_900);
    durations.add(7, 65_000);
    return { none, all, late: durations.quantiles([0.5], 65_000), gone: durations.quantiles([0.5], 200_000) };
  });
  const [median, p99] = found.all;
  assert.ok(found.none === null && found.gone === null);
  assert.ok(Math.abs(median / 500 - 1) < 0.03 && Math.abs(p99 / 990 - 1) < 0.03, String(found.all));
  assert.ok(Math.abs(found.late[0] - 7) < 0.3, String(found.late)); // those of a minute ago are gone
}

const SCENARIOS = {
  prices, reaches, fitsPhones, changesList, changesRate, changesFields, slow, keys, reconnects, otherWires, obeys, missesPings,
  triesAgain, keepsUp, pauses, marks, bars, bare, measures,
};

const [scenario, url, argument] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
try {
  await SCENARIOS[scenario](argument);
  assert.deepEqual(FAULTS, []);
} catch (error) {
  for (const page of browser.contexts().flatMap((context) => context.pages())) console.error(await page.innerText("body").catch(String));
  throw error;
} finally {
  await browser.close();
}
