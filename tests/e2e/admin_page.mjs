/* The admin page in a real Chromium: one scenario for each test of test_admin_page.py.

   Run: node admin_page.mjs SCENARIO JSON; exit status 0, or 1 with what was not so on standard error. JSON: {url, key, ws,
   tokens by user, workers}.
   Never break: each wait is bounded by DEADLINE_MS; a fault on any page (FAULTS) fails the scenario, whatever it was about.
*/

import assert from "node:assert/strict";
import { chromium } from "playwright-core";
import WebSocket from "ws";

const DEADLINE_MS = 30_000;
const TARGET = 44; // CSS pixels; WCAG 2.2, 2.5.5
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const FAULTS = [];
const isExpected = (message) => /^WebSocket connection to|^Failed to load resource: net::ERR_CONNECTION/.test(message.text());

const [scenario, argument] = process.argv.slice(2);
const { url, key, ws, tokens, workers } = JSON.parse(argument);

/** A page that asks for the key. */
async function visit({ prepare = () => {}, ...options } = {}) {
  const page = await browser.newPage(options);
  page.setDefaultTimeout(DEADLINE_MS);
  page.on("pageerror", (error) => FAULTS.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !isExpected(message)) FAULTS.push(message.text());
  });
  page.on("dialog", (dialog) => FAULTS.push(`a dialog: ${dialog.message()}`));
  page.on("request", (request) => request.url().startsWith(url) || FAULTS.push(`a request to ${request.url()}`));
  await prepare(page);
  await page.goto(`${url}/admin`);
  return page;
}

/** The same, signed in, with the first figures. */
async function enter(options) {
  const page = await visit(options);
  await page.fill("#key", key);
  await page.click("#sign-in button");
  await page.waitForSelector("body[data-state=connected]");
  await shows(page, "#total-workers", (text) => text === "2");
  return page;
}

/** Wait until an element's text is as wanted: a text, or a function of it. */
async function shows(page, selector, wanted) {
  const end = Date.now() + DEADLINE_MS;
  for (;;) {
    const text = await page.textContent(selector);
    if (typeof wanted === "function" ? wanted(text) : text === wanted) return;
    assert.ok(Date.now() < end, `${selector} is ${JSON.stringify(text)}, and not ${wanted}`);
    await page.waitForTimeout(20);
  }
}

/** What a promise gives, within DEADLINE_MS. */
function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`${what} did not come`)), DEADLINE_MS)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A client of the hub's own. */
class Client {
  #id = 0;
  #waiting = new Map();
  pushes = [];
  constructor(user) { this.user = user; }
  async open() {
    this.socket = new WebSocket(ws);
    this.closed = new Promise((resolve) => this.socket.on("close", resolve));
    this.socket.on("message", (data) => {
      for (const line of String(data).split("\n").map((line) => JSON.parse(line))) {
        if (line.id) this.#waiting.get(line.id)(line);
        else if (line.push?.pub) this.pushes.push(line.push.pub.data);
      }
    });
    await new Promise((resolve, reject) => this.socket.on("open", resolve).on("error", reject));
    const { connect } = await this.command("connect", { token: tokens[this.user] });
    this.id = connect.client;
    return this;
  }
  command(method, params) {
    const id = ++this.#id;
    this.socket.send(JSON.stringify({ id, [method]: params }));
    return soon(new Promise((resolve) => this.#waiting.set(id, resolve)), `an answer to ${method}`);
  }
  async subscribe(channel) { assert.ok((await this.command("subscribe", { channel })).subscribe); }
  publish(channel, data) { return this.command("publish", { channel, data }); }
  end() { this.socket.terminate(); }
}
const connect = (user) => new Client(user).open();

async function search(page, by, whom) {
  await page.selectOption("#by", by);
  await page.fill("#whom", whom);
  await page.press("#whom", "Enter");
}
const rows = (page, table) => page.$$eval(`#${table} tr`, (lines) => lines.map((line) => [...line.cells].map((cell) => cell.textContent)));

async function signs() {
  const page = await visit();
  assert.ok(await page.isHidden("#main"));
  await page.fill("#key", "wrong");
  await page.press("#key", "Enter");
  await shows(page, "#refused", "This key is wrong, or has ended.");
  assert.ok(await page.isHidden("#main"));
  const kept = () => page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie]);
  assert.deepEqual(await kept(), [0, 0, ""]);
  await page.fill("#key", key);
  await page.press("#key", "Enter");
  await page.waitForSelector("body[data-state=connected]");
  assert.ok(await page.isVisible("#main") && (await page.isHidden("#sign-in")));
  assert.equal(await page.textContent("#refused"), "");
  assert.deepEqual(await kept(), [1, 0, ""]);
  assert.equal(page.url(), `${url}/admin`);
  assert.ok(!(await page.content()).includes(key) && (await page.inputValue("#key")) === "");
  await page.reload();
  await page.waitForSelector("body[data-state=connected]");
  await page.click("#sign-out");
  assert.ok(await page.isHidden("#main") && (await page.isVisible("#sign-in")));
  assert.deepEqual(await kept(), [0, 0, ""]);
  await page.reload();
  await page.waitForSelector("#sign-in");
  assert.equal(await page.getAttribute("body", "data-state"), "signed-out");
  const other = await visit();
  assert.equal(await other.evaluate(() => sessionStorage.length), 0);
}

async function counts() {
  const page = await enter();
  await shows(page, "#total-connections", "0");
  const clients = await Promise.all(Array.from({ length: 7 }, () => connect("ann")));
  await shows(page, "#total-connections", "7");
  await page.waitForSelector('canvas[aria-label="Connections: 7 now"]');
  for (const one of clients) await one.subscribe("chat:a");
  const talking = setInterval(() => clients[0].publish("chat:a", "hi"), 50);
  await shows(page, "#total-deliveries", (text) => Number(text) > 20);
  await shows(page, "#total-publishes", (text) => Number(text) > 2);
  clearInterval(talking);
  const lines = await rows(page, "workers");
  assert.equal(lines.length, 2);
  assert.equal(lines.reduce((sum, line) => sum + Number(line[2]), 0), 7);
  assert.deepEqual(lines.map((line) => Number(line[1])).sort(), workers.toSorted());
  // Drawn, and with a legend of its own where there are several lines.
  assert.equal(await page.locator("canvas").count(), 8);
  for (const canvas of await page.locator("canvas").all()) {
    assert.ok(await canvas.evaluate((one) => one.getContext("2d").getImageData(0, 0, one.width, one.height).data.some((byte) => byte)));
  }
  await page.click("text=By worker");
  await shows(page, ".chart:nth-of-type(1) .legend", (text) => text.includes("worker 0") && text.includes("worker 1"));
  for (const one of clients) one.end();
  await shows(page, "#total-connections", "0");
}

async function disconnects() {
  const [ann, bob] = [await connect("ann"), await connect("bob")];
  await ann.subscribe("chat:a");
  const page = await enter();
  await search(page, "user", "ann");
  await page.waitForFunction(() => document.querySelectorAll("#connections tr").length === 1);
  const [[user, client, wire, address, , channels]] = await rows(page, "connections");
  assert.deepEqual([user, client, wire, address, channels], ["ann", ann.id, "websocket", "127.0.0.1", "chat:a"]);
  await page.click("#connections .danger");
  await shows(page, "#confirm-text", `Disconnect client ${ann.id} of ann?`);
  await page.keyboard.press("Enter"); // on Cancel, which has the focus
  await page.waitForSelector("#confirm", { state: "hidden" });
  await page.click("#connections .danger");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#confirm", { state: "hidden" });
  assert.equal((await ann.command("rpc", { method: "hub.time" })).error, undefined); // still there
  await page.click("#connections .danger");
  await page.click("#confirm button[value=yes]");
  assert.equal(await soon(ann.closed, "the end"), 3503);
  await shows(page, "#connections-note", "1 client disconnected.");
  await search(page, "address", "127.0.0.1");
  await page.waitForFunction((id) => document.querySelector("#connections .id")?.textContent === id, bob.id);
  await search(page, "address", "192.0.2.1");
  await shows(page, "#connections-note", "Nobody.");
  const more = await Promise.all([connect("ann"), connect("ann")]);
  await search(page, "user", "ann");
  await shows(page, "#disconnect-all", "Disconnect all of ann");
  await page.click("#disconnect-all");
  await page.click("#confirm button[value=yes]");
  assert.deepEqual(await soon(Promise.all(more.map((one) => one.closed)), "the ends"), [3503, 3503]);
  await shows(page, "#connections-note", "2 clients disconnected.");
  bob.end();
}

async function pages() {
  const clients = await Promise.all(Array.from({ length: 53 }, () => connect("ann")));
  const page = await enter();
  const ids = () => page.$$eval("#connections td:nth-child(2)", (cells) => cells.map((cell) => cell.textContent));
  await search(page, "user", "ann");
  await page.waitForFunction(() => document.querySelectorAll("#connections tr").length === 50);
  const first = await ids();
  assert.ok(await page.isHidden("#first-page"));
  await page.click("#next-page");
  await page.waitForFunction(() => document.querySelectorAll("#connections tr").length === 3);
  assert.deepEqual([...first, ...(await ids())].sort(), clients.map(({ id }) => id).sort());
  assert.ok(await page.isHidden("#next-page"));
  await page.click("#first-page");
  await page.waitForFunction(() => document.querySelectorAll("#connections tr").length === 50);
  assert.deepEqual(await ids(), first);
  for (const one of clients) one.end();
}

async function publishes() {
  const ann = await connect("ann");
  await ann.subscribe("chat:a");
  const page = await enter();
  await page.fill("#pattern", "chat");
  await page.press("#pattern", "Enter");
  await page.waitForFunction(() => document.querySelector("#channels th")?.textContent === "chat:a");
  await page.click('[aria-label="Publish to chat:a"]');
  assert.equal(await page.inputValue("#publish-channel"), "chat:a");
  await page.fill("#publish-data", "{no");
  await page.click("#publish button");
  await shows(page, "#publish-result", (text) => text.startsWith("Not JSON"));
  await page.fill("#publish-data", '{"text":"from the page"}');
  await page.click("#publish button");
  await shows(page, "#publish-result", (text) => text.startsWith("Published in"));
  while (!ann.pushes.length) await soon(new Promise((resolve) => ann.socket.once("message", resolve)), "the publication");
  assert.deepEqual(ann.pushes, [{ text: "from the page" }]);
  await page.fill("#publish-channel", "nowhere:a");
  await page.click("#publish button");
  await shows(page, "#publish-result", "unknown channel");
  await page.fill("#pattern", "nothing-is-called-so");
  await page.press("#pattern", "Enter");
  await page.waitForFunction(() => !document.querySelector("#channels th"));
  ann.end();
}

const whats = (page) => page.$$eval("#rows tr", (lines) => lines.map((line) => `${line.cells[1].textContent} ${line.cells[2].textContent} ${line.cells[3].textContent}`.trim()).reverse());
const tracing = (page) => shows(page, "#trace-note", (text) => /connection|subscriber/.test(text));

async function traces() {
  const [ann, bob] = [await connect("ann"), await connect("bob")];
  const page = await enter();
  await page.fill("#trace-name", "ann");
  await page.press("#trace-name", "Enter");
  await tracing(page);
  await bob.subscribe("chat:t");
  await ann.subscribe("chat:t");
  await bob.publish("chat:t", { text: "a payload" });
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 3);
  assert.deepEqual(await whats(page), ["→ hub subscribe chat:t", "← hub subscribe", "← hub push pub chat:t"]);
  assert.ok(!(await page.textContent("#rows")).includes("payload"));
  await page.click("#trace-stop");
  await shows(page, "#trace-note", "Stopped. 3 rows of user ann.");
  await page.check("#trace-payloads");
  await page.click("#trace-start");
  await tracing(page);
  await ann.command("refresh", { token: tokens.ann });
  await bob.publish("chat:t", { text: "a payload", token: tokens.bob, at: `see ${tokens.bob}` });
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 3);
  const text = await page.textContent("#rows");
  assert.ok(text.includes('"text":"a payload"') && text.includes("[redacted]") && !text.includes("eyJ"));
  ann.end();
  bob.end();
}

/** From the list of connections, of one client; and what is told of a channel. */
async function tracesFound() {
  const [ann, bob] = [await connect("ann"), await connect("bob")];
  await ann.subscribe("chat:t");
  const page = await enter();
  await search(page, "user", "ann");
  await page.click(`[aria-label="Trace ann, ${ann.id}"]`);
  await tracing(page);
  ann.end();
  await page.waitForFunction(() => document.querySelector("#rows td:nth-child(3)")?.textContent === "gone");
  await bob.subscribe("chat:t");
  await page.fill("#pattern", "");
  await page.press("#pattern", "Enter");
  await page.click('[aria-label="Trace channel chat:t"]');
  await tracing(page);
  await bob.publish("chat:t", 1);
  await page.waitForFunction(() => document.querySelector("#rows")?.textContent.includes("to 1 subscriber"));
  await page.fill("#trace-name", "nowhere:a");
  await page.click("#trace-start");
  await shows(page, "#trace-note", "unknown channel");
  bob.end();
}

/** Whatever a client can choose is text here: its user, channels, payloads. */
async function escapes() {
  const evil = Object.keys(tokens).find((user) => user.includes("<"));
  const one = await connect(evil);
  await one.subscribe("chat:x");
  const page = await enter();
  await search(page, "user", evil);
  await page.waitForFunction((user) => document.querySelector("#connections th")?.textContent === user, evil);
  await page.check("#trace-payloads");
  await page.selectOption("#trace-kind", "user");
  await page.fill("#trace-name", evil);
  await page.click("#trace-start");
  await tracing(page);
  const payload = "<script>globalThis.hacked = 1</script><img src=x onerror='globalThis.hacked = 1'>";
  await one.publish("chat:x", payload);
  await page.waitForFunction(() => document.querySelector("#rows")?.textContent.includes("onerror='globalThis.hacked = 1'"));
  await page.click("#connections .danger");
  assert.ok((await page.textContent("#confirm-text")).includes(evil));
  await page.keyboard.press("Escape");
  await page.fill("#publish-channel", "<img src=x>");
  await page.fill("#publish-data", JSON.stringify(payload));
  await page.click("#publish button");
  await shows(page, "#publish-result", (text) => text.startsWith("channel name"));
  assert.deepEqual(await page.evaluate(() => [globalThis.hacked, document.querySelectorAll("body script, img, iframe").length]), [undefined, 0]);
  one.end();
}

async function comesBack() {
  const page = await enter();
  await page.evaluate(() => {
    globalThis.states = [];
    new MutationObserver(() => states.push(document.body.dataset.state)).observe(document.body, { attributeFilter: ["data-state"] });
  });
  for (const pid of workers) process.kill(pid, "SIGKILL");
  await page.waitForFunction(() => states.includes("waiting") && states.at(-1) === "connected");
  await page.waitForFunction((pids) => {
    const found = [...document.querySelectorAll("#workers td:nth-child(2)")].map((cell) => Number(cell.textContent));
    return found.length === 2 && !found.some((pid) => pids.includes(pid));
  }, workers);
}

/** The worker that is stopped is not the page's own, or its page would hear nothing more. */
async function namesSilent() {
  const page = await enter();
  for (const pid of workers) {
    process.kill(pid, "SIGSTOP");
    try {
      const silent = await page.waitForFunction(() => /1 worker did not answer/.test(document.getElementById("trouble").textContent), null, { timeout: 6000 }).catch(() => null);
      if (!silent) continue;
      await shows(page, "#total-workers", "1 of 2");
      assert.ok((await page.textContent("#workers")).includes("does not answer"));
      process.kill(pid, "SIGCONT");
      await shows(page, "#total-workers", "2");
      await shows(page, "#trouble", "");
      return;
    } finally {
      process.kill(pid, "SIGCONT");
    }
  }
  assert.fail("no worker was missed");
}

async function fitsPhones() {
  const ann = await connect("ann");
  for (const name of ["a", "b", "c"]) await ann.subscribe(`chat:${name.repeat(60)}`);
  const page = await enter({ viewport: { width: 360, height: 740 }, hasTouch: true });
  await search(page, "user", "ann");
  await page.waitForSelector("#connections .danger");
  const beyond = await page.evaluate(() => [...document.querySelectorAll("body *")].filter((one) => !one.closest(".scroll > *, .aloud, dialog") && one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.outerHTML.slice(0, 80)));
  assert.deepEqual(beyond, []);
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  const small = await page.evaluate((least) => [...document.querySelectorAll("button, input, select, textarea, .switch, .choice span")]
    .filter((one) => one.checkVisibility() && !["checkbox", "radio"].includes(one.type) && one.getBoundingClientRect().height < least)
    .map((one) => one.outerHTML.slice(0, 80)), TARGET);
  assert.deepEqual(small, []);
  ann.end();
}

async function keys() {
  const ann = await connect("ann");
  const page = await visit();
  assert.equal(await page.evaluate(() => document.activeElement.id), "key");
  await page.keyboard.type(key);
  await page.keyboard.press("Enter");
  await page.waitForSelector("body[data-state=connected]");
  await page.waitForSelector("#connections tr");
  const order = ["sum", "pattern", "publish-channel", "publish-data", "by", "whom", `Disconnect ann, ${ann.id}`, "trace-kind", "trace-name", "trace-payloads", "trace-start"];
  const names = [];
  await page.focus("#sign-out");
  for (let i = 0; i < 60; i += 1) {
    await page.keyboard.press("Tab");
    const [name, outline] = await page.evaluate(() => {
      const one = document.activeElement;
      const seen = one.type === "radio" ? one.nextElementSibling : one;
      return [one.getAttribute("aria-label") ?? (one.id || one.value || one.textContent.trim() || one.className), getComputedStyle(seen).outlineStyle];
    });
    if (name === order.at(-1) && names.push(name)) break;
    assert.notEqual(outline, "none", `the focus is not seen on ${name}`);
    names.push(name);
  }
  const places = order.map((name) => names.indexOf(name));
  assert.ok(places.every((at, i) => at > (places[i - 1] ?? -1)), JSON.stringify([order, names]));
  // Each control has a name.
  const nameless = await page.evaluate(() => [...document.querySelectorAll("input, select, textarea, button, canvas")].filter((one) => one.checkVisibility() && !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label"))).map((one) => one.outerHTML));
  assert.deepEqual(nameless, []);
  ann.end();
}

const SCENARIOS = { signs, counts, disconnects, pages, publishes, traces, tracesFound, escapes, comesBack, namesSilent, fitsPhones, keys };

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
try {
  await SCENARIOS[scenario]();
  assert.deepEqual(FAULTS, []);
} catch (error) {
  for (const page of browser.contexts().flatMap((context) => context.pages())) console.error(await page.innerText("body").catch(String));
  throw error;
} finally {
  await browser.close();
}
process.exit(0); // whatever clients of ours are still connected
