/* Event streams and polls by clients that are not the hub's own: one scenario for each test of test_plain_http.py.

   Run: node plain_http.mjs SCENARIO URL PIDS; exit status 0, or 1 with what was not so on standard error. PIDS are those
   of the workers, to be killed.
   Never break: each wait is bounded by DEADLINE_MS.
*/

import assert from "node:assert/strict";
import { EventSource } from "eventsource";
import { chromium } from "playwright-core";

const DEADLINE_MS = 30_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"];
const CHANNELS = ["log:a", "log:b"];
const COUNT = 60;

/** Publish a number; again under the same key until a worker has taken it. */
async function publish(url, channel, number) {
  const body = JSON.stringify({ channel, data: number, idempotency_key: `k${number}` });
  for (const end = Date.now() + DEADLINE_MS; ; ) {
    try {
      const answer = await fetch(`${url}/publish`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
      if (answer.status === 200) return;
      assert.equal(answer.status, 503, await answer.text());
    } catch (error) {
      if (error instanceof assert.AssertionError) throw error; // all else: its worker was killed
    }
    assert.ok(Date.now() < end, `${number} could not be published`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function until(condition, what) {
  for (const end = Date.now() + DEADLINE_MS; !(await condition()); ) {
    assert.ok(Date.now() < end, `${what}: not within ${DEADLINE_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Listen and note what comes in `seen`; runs here or in a browser. */
function listen(query) {
  globalThis.seen = { opened: 0, messages: [], lost: 0, cursors: 0 };
  const source = new EventSource(query);
  source.onmessage = (event) => seen.messages.push(JSON.parse(event.data));
  source.addEventListener("open", (event) => event.data && (seen.opened += 1));
  source.addEventListener("lost", () => (seen.lost += 1));
  source.addEventListener("cursor", () => (seen.cursors += 1));
}

/** Each channel's numbers in order, each once but for those that an offset shows to be a repetition. */
function check({ messages, lost }, channels) {
  assert.equal(lost, 0);
  for (const [index, channel] of channels.entries()) {
    const found = [];
    let last = 0;
    for (const { pub } of messages.filter((one) => one.channel === channel)) {
      if (pub.offset > last) found.push(pub.data);
      last = Math.max(last, pub.offset);
    }
    const sent = [...Array(COUNT).keys()].filter((number) => number % channels.length === index);
    assert.deepEqual(found, sent);
  }
}

/** Publish, kill all workers in the middle, publish on: `look` tells what the listener has seen. */
async function outlivesWorkers(url, pids, channels, look) {
  await until(async () => (await look()).cursors >= 1, "the first cursor");
  for (let number = 0; number < COUNT; number += 1) {
    if (number === COUNT / 2) for (const pid of pids.split(",")) process.kill(Number(pid), "SIGKILL");
    await publish(url, channels[number % channels.length], number);
  }
  const last = (channel) => (one) => one.channel === channel && one.pub.data >= COUNT - channels.length;
  await until(async () => {
    const { messages } = await look();
    return channels.every((channel) => messages.some(last(channel)));
  }, "the last message");
  const seen = await look();
  assert.ok(seen.opened >= 2, "it was never cut off");
  check(seen, channels);
  return seen;
}

const query = (channels) => `/sse?${channels.map((channel) => `channel=${channel}`).join("&")}`;

async function node(url, pids, channels) {
  globalThis.EventSource = EventSource;
  listen(url + query(channels));
  return outlivesWorkers(url, pids, channels, async () => structuredClone(seen));
}

/** With one `stream` channel each message has its id: none comes twice. */
async function one(url, pids) {
  const { messages } = await node(url, pids, ["log:a"]);
  assert.equal(messages.length, COUNT);
}

const several = (url, pids) => node(url, pids, CHANNELS);

async function browser(url, pids) {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
  try {
    const page = await browser.newPage();
    await page.goto(url);
    await page.evaluate(listen, query(CHANNELS));
    await outlivesWorkers(url, pids, CHANNELS, () => page.evaluate(() => seen));
  } finally {
    await browser.close();
  }
}

const [scenario, url, pids] = process.argv.slice(2);
await { one, several, browser }[scenario](url.replace(/\/$/, ""), pids);
process.exit(0);
