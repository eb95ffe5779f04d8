/* Clients behind a proxy: one scenario for each test of test_proxies.py that others' scripts don't have.

   Run: node proxies.mjs SCENARIO URL; exit status 0, or 1 with what was not so on standard error.
   Never break: each wait is bounded by DEADLINE_MS.
*/

import assert from "node:assert/strict";
import { chromium } from "playwright-core";
import { io } from "socket.io-client";
import { DEADLINE_MS, nextArguments as next } from "./events.mjs";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"];

/** In a browser: more streams at once than it opens connections of HTTP/1.1, a WebSocket and a request beside them. */
async function inPage(deadlineMs) {
  const within = (promise, what) =>
    Promise.race([promise, new Promise((_, reject) => setTimeout(() => reject(new Error(what)), deadlineMs))]);
  const event = (target, name, accept = () => true) =>
    within(new Promise((resolve) => target.addEventListener(name, (one) => accept(one) && resolve(one))), name);
  const protocol = performance.getEntriesByType("navigation")[0].nextHopProtocol;
  const sources = Array.from({ length: 10 }, () => new EventSource("/sse?channel=log:page"));
  await Promise.all(sources.map((source) => event(source, "cursor")));
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/connection/websocket");
  await event(socket, "open");
  const answered = event(socket, "message");
  socket.send('{"id":1,"connect":{}}');
  const reply = JSON.parse((await answered).data.split("\n")[0]);
  const heard = sources.map((source) => event(source, "message"));
  const body = JSON.stringify({ channel: "log:page", data: "hi" });
  const published = await within(fetch("/publish", { method: "POST", headers: { "Content-Type": "application/json" }, body }), "publish");
  const data = (await Promise.all(heard)).map((one) => JSON.parse(one.data).pub.data);
  for (const source of sources) source.close();
  return { protocol, status: published.status, connected: "connect" in reply, data };
}

async function page() {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: [...FLAGS, "--ignore-certificate-errors"] });
  try {
    const page = await (await browser.newContext({ ignoreHTTPSErrors: true })).newPage();
    await page.goto(url);
    const found = await page.evaluate(inPage, DEADLINE_MS);
    assert.deepEqual(found, { protocol: "h2", status: 200, connected: true, data: Array(10).fill("hi") });
  } finally {
    await browser.close();
  }
}

/** The upgrade is refused on the way: the stock client goes on with its polls, and neither loses nor reports anything. */
async function staysWithPolls() {
  const socket = io(url, { forceNew: true });
  const faults = [];
  for (const name of ["disconnect", "connect_error"]) socket.on(name, (reason) => faults.push([name, reason]));
  const heard = [];
  socket.on("publication", ({ data }) => heard.push(data));
  const refused = next(socket.io.engine, "upgradeError");
  await next(socket, "connect");
  const call = (name, params) => socket.timeout(DEADLINE_MS).emitWithAck(name, params);
  await call("subscribe", { channel: "log:polls" });
  for (let i = 0; i < 10; i++) await call("publish", { channel: "log:polls", data: i });
  await refused;
  for (let i = 10; i < 20; i++) await call("publish", { channel: "log:polls", data: i });
  if (heard.length < 20) await next(socket, "publication", () => heard.length === 20);
  assert.deepEqual(heard, [...Array(20).keys()]);
  assert.deepEqual(faults, []);
  assert.equal(socket.io.engine.transport.name, "polling");
}

const scenarios = { page, staysWithPolls };
const [scenario, url] = process.argv.slice(2);
scenarios[scenario]().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
