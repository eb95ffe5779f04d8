/* The demo page in a real Chromium: one scenario for each test of test_demo_page.py.

   Run: node demo_page.mjs SCENARIO URL [ARGUMENT]; exit status 0, or 1 with what was not so on standard error.
   Never break: each wait is bounded by DEADLINE_MS; a fault on any page (FAULTS) fails the scenario, whatever it was about.
*/

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const DEADLINE_MS = 30_000;
const PHONE = { width: 390, height: 844 };
/** Without the sandbox (tests may run as root), without a graphics card, and without calls to the browser's maker. */
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const ACME = "[data-symbol=ACME] [data-column=price]";

/** Errors, warnings of the console and requests to elsewhere, of all pages. */
const FAULTS = [];

/** What the browser itself reports of a WebSocket that failed. */
const isExpected = (message) => message.text().startsWith("WebSocket connection to");

/** A page that is connected and shows a price for each symbol; `prepare(page)` is called before it is loaded. */
async function open(prepare = () => {}) {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  page.on("pageerror", (error) => FAULTS.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !isExpected(message)) FAULTS.push(message.text());
  });
  page.on("request", (request) => request.url().startsWith(url) || FAULTS.push(`a request to ${request.url()}`));
  await prepare(page);
  await page.goto(url);
  await page.waitForSelector("body[data-state=connected]");
  const shown = () => [...document.querySelectorAll("[data-column=price]")].every((cell) => /\d/.test(cell.textContent));
  await page.waitForFunction(shown);
  return page;
}

/** Wait until ACME's price isn't the one that it is now. */
async function acmeMoves(page) {
  const before = await page.textContent(ACME);
  await page.waitForFunction(([cell, text]) => document.querySelector(cell).textContent !== text, [ACME, before]);
}

/** From here on the page notes the states that its connection goes through, in `states`. */
async function noteStates(page) {
  await page.evaluate(() => {
    globalThis.states = [];
    const note = () => states.push(document.body.dataset.state);
    new MutationObserver(note).observe(document.body, { attributeFilter: ["data-state"] });
  });
}

const hasComeBack = () => states.includes("waiting") && states.at(-1) === "connected";

/** Send one message; the box is empty again once the hub has taken it. */
async function say(page, text) {
  await page.fill("#text", text);
  await page.press("#text", "Enter");
  await page.waitForFunction(() => document.getElementById("text").value === "");
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

/** Answer the first two subscriptions to ACME in the hub's place, with a temporary error. */
function refuseAcme() {
  globalThis.refusals = 0;
  const refuse = (socket, line) => {
    refusals += 1;
    const reply = { id: JSON.parse(line).id, error: { code: 100, message: "", temporary: true } };
    socket.onmessage(new MessageEvent("message", { data: JSON.stringify(reply) }));
  };
  globalThis.WebSocket = class extends WebSocket {
    send(message) {
      for (const line of message.split("\n")) {
        if (line.includes('"ticker:ACME"') && refusals < 2) refuse(this, line);
        else super.send(line);
      }
    }
  };
}

// The scenarios.

async function prices() {
  const page = await open();
  await acmeMoves(page);
  await acmeMoves(page);
  await page.waitForFunction(() => Number(document.getElementById("rate").textContent) > 0);
  for (const [way, sign] of [["up", "+"], ["down", "-"]]) {
    await page.waitForSelector(`tr.${way}`); // the flash
    // Found and read in one step, as the next price may turn it.
    const text = await page.waitForFunction((way) => document.querySelector(`td.${way}`)?.textContent, way);
    assert.equal((await text.jsonValue())[0], sign);
  }
}

async function reaches(screenshot) {
  const page = await open();
  await page.screenshot({ path: screenshot });
  await page.setViewportSize(PHONE);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), PHONE.width);

  const live = await page.$$eval("[aria-live], [role=status], [role=log], [role=alert], output", (all) => all.map((one) => one.id));
  assert.deepEqual(live, ["state", "problem"]);
  // By role and name, as a screen reader finds them.
  await page.getByRole("table", { name: "Live prices" }).waitFor();
  await page.getByRole("rowheader", { name: "ACME" }).waitFor();
  await page.getByRole("textbox", { name: "Message" }).waitFor();
}

async function chat() {
  const [writer, reader] = [await open(), await open()];
  const text = "<b>5 > 4</b> & so on";
  await say(reader, "I am here");
  await reader.waitForSelector("li:has-text('I am here')");
  await say(writer, text);
  const [sent, received] = [await writer.waitForSelector(`li:has-text('${text}')`), await reader.waitForSelector(`li:has-text('${text}')`)];
  assert.equal(await received.$("b"), null, "a message became HTML");
  assert.ok((await sent.textContent()).startsWith("you"));
  assert.ok(!(await received.textContent()).startsWith("you"));
  await writer.evaluate(() => {
    const form = document.getElementById("write");
    for (let line = 1; line <= 25; line += 1) {
      form.elements.text.value = `line ${line}`;
      form.requestSubmit();
    }
  });
  await reader.waitForFunction(() => document.querySelector("#messages li:last-child").textContent.endsWith("line 25"));
  assert.equal(await reader.locator("#messages li").count(), 20);
}

async function reconnects(workers) {
  const page = await open();
  const before = await page.textContent("#detail");
  await noteStates(page);
  for (const pid of workers.split(",")) process.kill(Number(pid), "SIGKILL");
  await page.waitForFunction(hasComeBack);
  assert.notEqual(await page.textContent("#detail"), before);
  await acmeMoves(page);
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
  const page = await open((page) => page.addInitScript(refuseAcme));
  assert.equal(await page.evaluate(() => refusals), 2); // and yet `open` has seen ACME's price
}

/** Of a page that painted each price, or fell behind, timers would be late. */
async function keepsUp() {
  const page = await open();
  await noteStates(page);
  // Less than 1,000: on a busy machine the source itself is late.
  await page.waitForFunction(() => Number(document.getElementById("rate").textContent) > 800);
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

const SCENARIOS = { prices, reaches, chat, reconnects, obeys, missesPings, triesAgain, keepsUp };

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
