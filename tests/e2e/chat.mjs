/* The chat's page in real Chromiums, one for each person or device: one scenario for each test of test_chat.py.

   Run: node chat.mjs SCENARIO URL [ARGUMENT…]; exit status 0, or 1 with what was not so on standard error.
   Never break: each wait is bounded by DEADLINE_MS; a fault on any page (FAULTS) fails the scenario, whatever it was about.
*/

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { Conversation } from "../../hub/demos/chat/page/conversation.js";

const DEADLINE_MS = 30_000;
const PHONE = { width: 360, height: 740 };
const DESKTOP = { width: 1280, height: 800 };
const TARGET_PX = 44;
/** Without the sandbox (tests may run as root), without a graphics card, and without calls to the browser's maker. */
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const WIRES = ["websocket", "sse", "poll", "socketio"];
const HERE = fileURLToPath(new URL(".", import.meta.url));
const TERMINAL = fileURLToPath(new URL("../../hub/demos/chat/terminal.mjs", import.meta.url));

/** Errors, warnings of the console and requests to elsewhere, of all pages. */
const FAULTS = [];
const PAGES = [];
const CHILDREN = [];

/** What the browser itself reports of a request that failed: a killed worker, a network that is away, a file that isn't there. */
const isExpected = (message) => /^(WebSocket connection to|Failed to load resource)/.test(message.text());

/** The chat before its login. */
async function visit(wire, options = {}) {
  const context = await browser.newContext({ viewport: DESKTOP, ...options });
  const page = await context.newPage();
  PAGES.push(page);
  page.setDefaultTimeout(DEADLINE_MS);
  page.on("pageerror", (error) => FAULTS.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !isExpected(message)) FAULTS.push(message.text());
  });
  page.on("request", (request) => /^(ws|http):\/\//.test(request.url()) && (request.url().startsWith(url) || FAULTS.push(`a request to ${request.url()}`)));
  await page.goto(`${url}/?wire=${wire}`);
  await page.waitForFunction(() => document.activeElement?.id === "name");
  return page;
}

const isConnected = (page) => page.waitForSelector("body[data-state=connected]");

/** A person's device that is in the lobby, and heard there. */
async function enter(name, wire, options) {
  const page = await visit(wire, options);
  await page.fill("#name", name);
  await page.press("#name", "Enter");
  await isConnected(page);
  return page;
}

async function say(page, text) {
  await page.fill("#text", text);
  await page.press("#text", "Enter");
  assert.equal(await page.inputValue("#text"), "");
}

const quoted = (text) => JSON.stringify(text);
const sees = (page, text) => page.waitForSelector(`#log .text:text-is(${quoted(text)})`);
const open = (page, key) => page.click(`[data-key=${quoted(key)}]`);
/** The texts that a page shows in its conversation. */
const texts = (page) => page.$$eval("#log .text", (all) => all.map((one) => one.textContent));
/** Until some function of the page holds. */
const until = (page, test, argument) => page.waitForFunction(test, argument);
const toasted = (page, text) => page.waitForSelector(`.toast:has-text(${quoted(text)})`);
/** Until the last message of ours has this mark. */
const marked = (page, text, mark) => page.waitForSelector(`#log .message:has(.text:text-is(${quoted(text)})) [data-state=${mark}]`, { state: "attached" });
const hears = (page, name) => until(page, (name) => document.getElementById("here").textContent.includes(name), name);
const types = (page, name) => until(page, (name) => document.getElementById("typists").textContent === `${name} is typing`, name);

/** What a channel of the server API's says. */
async function ask(apiUrl, key, method, params) {
  const response = await fetch(`${apiUrl}/${method}`, { method: "POST", headers: { "X-API-Key": key }, body: JSON.stringify(params) });
  return (await response.json()).result;
}

/** Until a device has acknowledged all that the user's mailbox had; the marks don't wait for that. */
async function acknowledged(apiUrl, key, user) {
  for (const end = Date.now() + DEADLINE_MS; ; await sleep(50)) {
    const { messages } = await ask(apiUrl, key, "mailbox_stats", { user });
    if (!messages) return;
    if (Date.now() > end) throw new Error(`${messages} messages stay in the mailbox of ${user}`);
  }
}

/** All pages show these numbers once, those of each writer in order. */
async function allSee(pages, prefixes, count) {
  for (const page of pages) {
    for (const prefix of prefixes) await sees(page, `${prefix} ${count - 1}`);
    for (const prefix of prefixes) {
      const wanted = Array.from({ length: count }, (_, number) => `${prefix} ${number}`);
      await until(page, ([prefix, count]) => [...document.querySelectorAll("#log .text")].filter((one) => one.textContent.startsWith(`${prefix} `)).length >= count, [prefix, count]);
      assert.deepEqual((await texts(page)).filter((text) => text.startsWith(`${prefix} `)), wanted);
    }
  }
}

// The scenarios.

/** Both ways, as text; typing; who is here, and who is no more. */
async function talks(wire) {
  const [ann, bob] = [await enter("ann", "websocket"), await enter("bob", wire)];
  await say(ann, "early");
  await sees(bob, "early");
  const html = "<b onclick=alert(1)>5 > 4</b> & so on";
  await say(bob, html);
  await sees(ann, html);
  assert.equal(await ann.locator("#log b").count(), 0, "a message became HTML");
  await Promise.all([hears(ann, "bob"), hears(bob, "ann")]);
  await bob.locator("#text").pressSequentially("hm");
  await types(ann, "bob");
  await until(ann, () => document.getElementById("typists").textContent === ""); // it ends by itself
  await bob.context().close();
  if (wire !== "poll") await until(ann, () => document.getElementById("here").textContent === "Only you are here");
  const late = await enter("carl", wire);
  for (const text of ["early", html]) await sees(late, text);
}

/** Two devices of each; the marks and the notification are on all of them. */
async function writes(wire, apiUrl, key) {
  const anns = [await enter("ann", "websocket"), await enter("ann", wire)];
  const bobs = [await enter("bob", wire), await enter("bob", "socketio")];
  await anns[0].fill("#where", "@bob");
  await anns[0].press("#where", "Enter");
  await say(anns[0], "psst");
  for (const bob of bobs) await toasted(bob, "psst");
  await open(anns[1], "@bob");
  for (const ann of anns) await marked(ann, "psst", "delivered");
  for (const bob of bobs) await bob.waitForSelector("[data-key='@ann'] .badge");
  await open(bobs[0], "@ann");
  await sees(bobs[0], "psst");
  for (const ann of anns) await marked(ann, "psst", "read");
  await bobs[1].waitForSelector("[data-key='@ann'] .badge", { state: "detached" }); // read on one is read on all
  await acknowledged(apiUrl, key, "bob");
  assert.equal(await anns[0].locator(".toast").count(), 0);
  await say(bobs[0], "yes?");
  for (const ann of anns) await sees(ann, "yes?");
  // Read is what was seen: not in a window that nobody sees.
  await bobs[0].evaluate(() => Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true }));
  await say(anns[0], "are you there?");
  await marked(anns[0], "are you there?", "delivered");
  await sees(bobs[0], "are you there?");
  await say(bobs[0], "(typed by a cat)"); // what it had to say of that message before has come by then
  await sees(anns[0], "(typed by a cat)");
  assert.equal(await anns[0].locator(".message:has-text('are you there?') [data-state=read]").count(), 0);
  await bobs[0].evaluate(() => delete document.visibilityState && document.dispatchEvent(new Event("visibilitychange")));
  await marked(anns[0], "are you there?", "read");
  await open(anns[0], "#lobby");
  for (const bob of bobs) await open(bob, "#help");
  await say(anns[0], "and @bob again");
  for (const bob of bobs) await toasted(bob, "and @bob again");
  // What is looked at needs no notice any more; what is half written stays where it was written.
  await bobs[0].fill("#text", "half");
  await bobs[0].click(".toast:has-text('and @bob again')");
  await open(bobs[1], "#lobby");
  for (const bob of bobs) await bob.waitForSelector(".toast", { state: "detached" });
  assert.equal(await bobs[0].inputValue("#text"), "");
  await open(bobs[0], "#help");
  assert.equal(await bobs[0].inputValue("#text"), "half");
  // A device that comes later has it all, and nothing is new to it.
  const late = await enter("bob", wire);
  await open(late, "@ann");
  for (const text of ["psst", "yes?"]) await sees(late, text);
  assert.equal(await late.locator("#people .badge").count(), 0);
}

/** What is said while one is away is there when one is back, once, in order; so is what was written. */
async function away(wire, apiUrl, key) {
  const [ann, bob] = [await enter("ann", "websocket"), await enter("bob", wire)];
  await say(ann, "a 0");
  await sees(bob, "a 0");
  await bob.context().setOffline(true);
  await until(bob, () => !navigator.onLine);
  for (let number = 1; number < 20; number += 1) await say(ann, `a ${number}`);
  await sees(ann, "a 19");
  await ann.fill("#where", "@bob");
  await ann.press("#where", "Enter");
  await say(ann, "in private");
  // For one who has never been here, either.
  await ann.fill("#where", "@carl");
  await ann.press("#where", "Enter");
  await say(ann, "welcome");
  await marked(ann, "welcome", "sent");
  assert.equal((await ask(apiUrl, key, "mailbox_stats", { user: "carl" })).messages, 1);
  for (const text of ["b 0", "b 1"]) await say(bob, text);
  assert.equal(await bob.locator("#log [data-state=sending]").count(), 2);
  await bob.context().setOffline(false);
  await allSee([bob], ["a"], 20);
  await toasted(bob, "in private");
  await until(bob, () => !document.querySelector("#log [data-state=sending]"));
  await open(ann, "#lobby");
  await allSee([ann], ["a"], 20);
  await allSee([ann], ["b"], 2);
  const carl = await enter("carl", wire);
  await open(carl, "@ann");
  await sees(carl, "welcome");
  await open(ann, "@carl");
  await marked(ann, "welcome", "read");
  await acknowledged(apiUrl, key, "carl");
}

/** Workers are killed while both write, with calls of theirs in hand: nothing is lost, doubled or out of order. */
async function survives(wires, ...pids) {
  const [one, other] = wires.split(",");
  const pages = [await enter("ann", one), await enter("bob", other)];
  const count = 30;
  const kill = (signal) => pids.forEach((pid) => process.kill(Number(pid), signal));
  for (let number = 0; number < count; number += 1) {
    if (number === 10) kill("SIGSTOP"); // now nobody answers
    await say(pages[0], `a ${number}`);
    await say(pages[1], `b ${number}`);
    if (number === 10) kill("SIGKILL");
  }
  await allSee(pages, ["a", "b"], count);
  for (const page of pages) await until(page, () => !document.querySelector("#log [data-state=sending], #log [data-state=failed]"));
  // Once all is quiet: one that comes now sees the same.
  await allSee([await enter("carl", "poll")], ["a", "b"], count);
}

/** What is said between the answer with the past and the subscription. */
async function joins() {
  const ann = await enter("ann", "websocket");
  await say(ann, "early");
  const bob = await visit("websocket");
  await bob.evaluate(() => {
    globalThis.held = [];
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (message) {
      if (globalThis.held && message.includes('"chat:lobby"')) held.push(() => send.call(this, message));
      else send.call(this, message);
    };
  });
  await bob.fill("#name", "bob");
  await bob.press("#name", "Enter");
  await until(bob, () => held.length > 0);
  await say(ann, "between");
  await marked(ann, "between", "sent");
  await bob.evaluate(() => {
    const all = held;
    globalThis.held = null;
    for (const go of all) go();
  });
  await say(ann, "late");
  await sees(bob, "late");
  assert.deepEqual(await texts(bob), ["early", "between", "late"]);
}

/** Whatever order they come in: a message stands once, and its state never goes back. */
async function keeps() {
  const one = new Conversation("@bob", "ann");
  const message = (id, user, state = "sent") => ({ id, user, text: id, at: 1, state });
  const stateOf = (id) => one.byId.get(id).state;
  assert.deepEqual([one.channel, one.signs, new Conversation("#a", "ann").channel], ["me:#ann", "signs:#ann,bob", "chat:a"]);
  assert.equal(one.mark("early", "bob", "read"), false);
  assert.deepEqual([one.add(message("early", "ann")), one.add(message("early", "ann")), stateOf("early")], [true, false, "read"]);
  for (const [state, isNews, after] of [["delivered", true, "delivered"], ["delivered", false, "delivered"], ["read", true, "read"], ["delivered", false, "read"], ["nonsense", false, "read"]]) {
    one.add(message("mine", "ann"));
    assert.deepEqual([one.mark("mine", "bob", state), stateOf("mine")], [isNews, after]);
  }
  assert.equal(one.mark("mine", "ann", "read"), false); // nobody marks what it has written
  one.add(message("sending", "ann", "sending"));
  one.add({ ...message("sending", "ann"), at: 2 });
  assert.deepEqual([stateOf("sending"), one.byId.get("sending").at], ["sent", 2]);
  one.add(message("theirs", "bob"));
  assert.deepEqual(one.unmarked("delivered").map(({ id }) => id), ["theirs"]);
  one.byId.get("theirs").asked = "delivered";
  assert.deepEqual([one.unmarked("delivered").length, one.unmarked("read").length], [0, 1]);
  one.mark("theirs", "ann", "read");
  assert.equal(one.unmarked("read").length, 0);
  assert.deepEqual(one.messages.map(({ id }) => id), ["early", "mine", "sending", "theirs"]);
  for (let id = 0; id < 5000; id += 1) one.mark(`unknown ${id}`, "bob", "read");
  one.add(message("unknown 0", "ann"));
  assert.equal(stateOf("unknown 0"), "sent"); // of so many only the latest are kept
}

/** From wire to wire, and on each both ways; what is said meanwhile is not lost. */
async function changes() {
  const [ann, bob] = [await enter("ann", "websocket"), await enter("bob", "websocket")];
  let number = 0;
  for (const wire of ["sse", "poll", "socketio", "websocket"]) {
    await bob.check(`[value=${wire}]`, { force: true }); // under its label
    await say(ann, `a ${number}`);
    await until(bob, () => document.body.dataset.state === "connected");
    await say(bob, `b ${number}`);
    await allSee([ann, bob], ["a", "b"], (number += 1));
  }
}

/** Nothing is beyond a phone's edge, and a finger hits all that is pressed. */
async function fits(screenshot) {
  const phone = await visit("websocket", { viewport: PHONE, hasTouch: true, isMobile: true, colorScheme: "dark", reducedMotion: "reduce" });
  const fit = async (what) => {
    const wide = await phone.evaluate(() => [document.documentElement.scrollWidth, ...[...document.querySelectorAll("#log, #side")].map((one) => one.scrollWidth - one.clientWidth)]);
    assert.ok(wide[0] <= PHONE.width && wide.slice(1).every((by) => by <= 0), `${what}: ${wide}`);
    const small = await phone.$$eval("button, input, textarea, .switch label", (all, least) => all
      .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest("[inert]") && one.type !== "radio")
      .map((one) => [one.id || one.className || one.textContent, Math.round(one.getBoundingClientRect().width), Math.round(one.getBoundingClientRect().height)])
      .filter(([, width, height]) => width < least || height < least), TARGET_PX);
    // Of the switch, each half is 2 px of frame and 42 px high: pressed is the label.
    assert.deepEqual(small.filter(([, , height]) => height < 42), [], what);
    return phone.screenshot({ path: screenshot });
  };
  assert.ok((await fit("login")).length);
  await phone.fill("#name", "x".repeat(24));
  await phone.tap("#login button");
  await isConnected(phone);
  await say(phone, "w".repeat(400));
  await say(phone, `${"a line\n".repeat(30)}the end`);
  await phone.waitForSelector("#log .message");
  await fit("room");
  assert.equal(await phone.getAttribute("#menu", "aria-expanded"), "false");
  await phone.tap("#menu");
  await phone.waitForFunction(() => document.getElementById("side").getBoundingClientRect().left === 0);
  await fit("drawer");
  await phone.tap("[data-key='#help']");
  await until(phone, () => document.getElementById("title").textContent === "#help" && document.getElementById("talk").inert === false);
  await fit("another room");
  // Also with the drawer closed one sees that one is not heard.
  await phone.context().setOffline(true);
  await phone.waitForSelector("#away:text-is('Reconnecting')", { timeout: 60_000 });
  assert.ok(await phone.isHidden("#here"));
  await phone.context().setOffline(false);
  await phone.waitForSelector("#away", { state: "hidden" });
  assert.ok(await phone.isVisible("#here"));
}

/** All of it by keys, and always visibly. */
async function keys() {
  const [ann, bob] = [await visit("websocket"), await enter("bob", "websocket")];
  const key = (...names) => names.reduce((before, name) => before.then(() => ann.keyboard.press(name)), Promise.resolve());
  const focused = () => ann.evaluate(() => {
    const one = document.activeElement;
    return one.id || one.dataset.key || one.value || one.textContent;
  });
  const seen = () => ann.evaluate(() => {
    const one = document.activeElement.type === "radio" ? document.activeElement.nextElementSibling : document.activeElement;
    const style = getComputedStyle(one);
    return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  });
  await ann.keyboard.type("ann");
  await key("Enter");
  await isConnected(ann);
  assert.equal(await focused(), "text");
  await ann.keyboard.type("one");
  await key("Shift+Enter");
  await ann.keyboard.type("two");
  await key("Enter");
  await until(bob, () => [...document.querySelectorAll("#log .text")].some((one) => one.textContent === "one\ntwo"));
  // Everything in the order in which it is read, and back to the field.
  await hears(ann, "bob");
  await ann.focus(".skip");
  const order = [];
  while (order.at(-1) !== "text" && order.length < 20) {
    assert.ok(await seen(), `no focus to be seen on ${order.at(-1) ?? "the first"}`);
    await key("Tab");
    order.push(await focused());
  }
  assert.deepEqual(order, ["#lobby", "#help", "#random", "@bob", "where", "Open", "websocket", "log", "text"]);
  // Into a conversation, and on to another wire; Escape leads back to the field from anywhere.
  await ann.focus("[data-key='@bob']");
  await key("Enter");
  await ann.keyboard.type("hi");
  await key("Enter");
  await toasted(bob, "hi");
  await bob.keyboard.press("Escape");
  await bob.waitForSelector(".toast", { state: "detached" });
  await ann.focus("[value=websocket]");
  await key("ArrowRight");
  assert.ok(await ann.isChecked("[value=sse]"));
  await isConnected(ann);
  await key("Escape");
  assert.equal(await focused(), "text");
  // On a small screen the drawer is out of reach until it is open, and gives the focus back.
  await ann.setViewportSize(PHONE);
  await until(ann, () => document.getElementById("side").inert);
  await ann.focus("#menu");
  await key("Enter");
  assert.equal(await focused(), "@bob");
  await key("Escape");
  assert.equal(await focused(), "menu");
}

/** Stock socket.io-client in a terminal, old and new, and a page. */
async function terminal() {
  const ann = await enter("ann", "websocket");
  const lines = (name, ...options) => {
    const child = spawn("node", [TERMINAL, name, "--url", url, ...options], { cwd: HERE });
    CHILDREN.push(child);
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (text += data));
    const prints = async (pattern) => {
      const end = Date.now() + DEADLINE_MS;
      while (!pattern.test(text)) {
        if (Date.now() > end) throw new Error(`${name}: no ${pattern} in ${text}`);
        await once(child.stdout, "data", { signal: AbortSignal.timeout(DEADLINE_MS) });
      }
    };
    return { child, prints, write: (line) => child.stdin.write(`${line}\n`), read: () => text };
  };
  const [old, fresh] = [lines("olga"), lines("fred", "--v2", "--polling")];
  for (const one of [old, fresh]) await one.prints(/you are in #lobby/);
  await say(ann, "to all of you");
  await old.prints(/^#lobby ann: to all of you$/m);
  await fresh.prints(/^\d.* #lobby ann: to all of you$/m);
  old.write("from the terminal \u001b[2J");
  await until(ann, () => [...document.querySelectorAll("#log .text")].some((one) => one.textContent.startsWith("from the terminal")));
  await fresh.prints(/#lobby olga: from the terminal \?\[2J$/m);
  await hears(ann, "olga");
  old.write("/who");
  await old.prints(/^here: ann, fred, olga$/m);
  await open(ann, "@olga");
  await say(ann, "psst");
  await old.prints(/^ann to you: psst$/m);
  await marked(ann, "psst", "delivered");
  old.write("/direct ann what is it?");
  await sees(ann, "what is it?");
  await old.prints(/^ann has read it$/m);
  assert.equal(old.read().match(/to all of you/g).length, 1);
  for (const one of [old, fresh]) one.write("/quit");
  for (const { child } of [old, fresh]) assert.deepEqual(child.exitCode === null ? await once(child, "exit") : [child.exitCode, null], [0, null]);
}

/** Without the client library the switch says why it can't. */
async function lacks() {
  const page = await visit("socketio");
  await page.fill("#name", "ann");
  await page.press("#name", "Enter");
  await isConnected(page);
  assert.ok(await page.isDisabled("[value=socketio]"));
  assert.ok(await page.isChecked("[value=websocket]"));
  assert.match(await page.textContent("#no-library"), /socketio\.client_dir/);
}

const SCENARIOS = { talks, writes, away, survives, joins, keeps, changes, fits, keys, terminal, lacks };

const [scenario, address, ...rest] = process.argv.slice(2);
const url = address.replace(/\/$/, "");
// `keeps` needs none, and no hub either.
const browser = scenario === "keeps" ? null : await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
try {
  await SCENARIOS[scenario](...rest);
  assert.deepEqual(FAULTS, []);
} catch (error) {
  for (const page of PAGES) console.error(await page.innerText("body").catch(String));
  console.error(FAULTS);
  throw error;
} finally {
  for (const child of CHILDREN) child.kill();
  await browser?.close();
}
