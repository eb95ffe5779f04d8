/* The stock JavaScript SDK in a page of a real Chromium, whose origin is not the hub's: its own EventSource and fetch.

   Run: node fallbacks_page.mjs PAGE HUB TRANSPORT, where PAGE is the origin to be served here; exit status 0, or 1 with
   what was not so on standard error.
   Never break: each wait is bounded by DEADLINE_MS.
*/

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const DEADLINE_MS = 30_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const [origin, hub, transport] = process.argv.slice(2);
const sdk = await readFile(new URL("node_modules/centrifuge/dist/centrifuge.js", import.meta.url), "utf8");

/** What the page does: connect, subscribe, hear itself; which transport it was, and what it heard. */
function talk([hub, transport]) {
  const path = transport === "websocket" ? `${hub.replace("http", "ws")}/connection/websocket` : `${hub}/connection/${transport}`;
  const client = new Centrifuge([{ transport, endpoint: path }], { emulationEndpoint: `${hub}/emulation` });
  return new Promise((resolve, reject) => {
    let over = "";
    client.on("connected", (context) => (over = context.transport));
    client.on("error", (context) => reject(new Error(JSON.stringify(context))));
    const room = client.newSubscription("chat:page");
    room.on("subscribed", () => room.publish({ text: "grüß\r\ndich 🙂" }));
    room.on("publication", ({ data }) => {
      client.disconnect();
      resolve([over, data.text]);
    });
    room.subscribe();
    client.connect();
  });
}

const server = createServer((_, response) => response.setHeader("Content-Type", "text/html").end("<!doctype html><title>page</title>"));
await new Promise((resolve) => server.listen(Number(new URL(origin).port), "127.0.0.1", resolve));
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  await page.goto(origin);
  await page.addScriptTag({ content: sdk });
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error("nothing was heard")), DEADLINE_MS).unref());
  assert.deepEqual(await Promise.race([page.evaluate(talk, [hub, transport]), late]), [transport, "grüß\r\ndich 🙂"]);
} finally {
  await browser.close();
  server.close();
}
