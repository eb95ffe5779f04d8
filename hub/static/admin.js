/* The admin page: how the hub is, who is connected, and what can be done about it.

   Does: sign in, keep figures of the last five minutes, show lists, disconnect, publish, trace.
   Does not: speak the protocol (admin_link.js) or draw (admin_chart.js).
   Never break: whatever comes from clients (names of users and channels, payloads) is put in as text, never as HTML; the key
   is kept in this tab's sessionStorage alone and shown nowhere.
   Fed by: hub/admin.py; the figures are those of hub/figures.py. */

import { Chart } from "/admin/admin_chart.js";
import { Link } from "/admin/admin_link.js";

const KEPT = "hub-admin-key";
const [PAGE, MAX_ROWS] = [50, 500];
const KNOWN_MS = 5000; // who has said nothing for so long is left out; before, its last figures count, so that sums don't jump
const WINDOW = 30; // readings: what percentiles are of; each worker measures itself every 1.5 s
const MAX_LISTED = 5; // channels of one connection that are named in the table
const $ = (id) => document.getElementById(id);

// Numbers as text.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const count = (value) => (value < 10_000 ? whole.format(value) : compact.format(value));
const rate = (value) => (value < 10 && value % 1 >= 0.05 ? value.toFixed(1) : count(value));
const scaled = (value, steps) => {
  const [size, unit] = steps.findLast(([size]) => value >= size) ?? steps[0];
  const number = value / size;
  return `${number >= 1000 ? number.toFixed(0) : Number(number.toPrecision(3))} ${unit}`;
};
const seconds = (value) => (value ? scaled(value, [[1e-6, "µs"], [1e-3, "ms"], [1, "s"]]) : "0 s");
const bytes = (value) => scaled(value, [[1, "B"], [1024, "KB"], [1024 ** 2, "MB"], [1024 ** 3, "GB"]]);
const age = (value) => (value < 90 ? `${Math.floor(value)} s` : value < 5400 ? `${Math.floor(value / 60)} min` : value < 172_800 ? `${Math.floor(value / 3600)} h` : `${Math.floor(value / 86_400)} d`);
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

// Elements: text is always text.

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
function button(text, label, act, className = "plain") {
  const made = element("button", text, className);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}
function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells.map((cell) => {
    if (cell instanceof HTMLTableCellElement) return cell;
    const td = document.createElement("td");
    td.append(cell);
    return td;
  }));
  return made;
}
const number = (text) => element("td", text, "number");

// The connection.

let link = null;
let state = "signed-out";
const STATES = { connecting: "Connecting", connected: "Connected", waiting: "Waiting", refused: "Signed out", "signed-out": "Signed out" };

function show(now, text) {
  state = now;
  document.body.dataset.state = now;
  $("state").textContent = STATES[now];
  $("detail").textContent = now === "refused" ? "" : text;
  if (now === "connected") {
    $("refused").textContent = "";
    showMain(true);
    searchChannels();
    searchConnections();
  } else if (now === "refused") {
    signOut();
    $("refused").textContent = text === "wrong key" ? "This key is wrong, or has ended." : text;
  }
  if (now !== "connected" && tracing) endTrace(now === "waiting" ? "The connection was lost, and the trace with it." : "");
}

function showMain(on) {
  for (const id of ["main", "totals", "sign-out"]) $(id).hidden = !on;
  $("sign-in").hidden = on;
}

function signIn(key) {
  sessionStorage.setItem(KEPT, key);
  link = new Link(key, show);
  link.subscribe("$hub:figures", takeFigures).catch(() => {}); // asked for again with each connection
}

function signOut() {
  sessionStorage.removeItem(KEPT);
  link?.close();
  link = null;
  showMain(false);
  $("key").value = "";
  $("key").focus();
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  $("refused").textContent = "";
  link?.close();
  signIn($("key").value);
  $("key").value = "";
});
$("sign-out").addEventListener("click", () => {
  signOut();
  show("signed-out", "");
});

// Figures.

/** One chart each: `sum(all)` and `each(worker)` give its value or, by series, its values; a worker has `now`, its figures, and
    `before`, those of the reading before, which are null at first. */
const perSecond = (pick) => ({ now, before }) => (before ? Math.max(0, (pick(now) - pick(before)) / Math.max(0.1, now.time - before.time)) : null);
const total = (all, pick) => all.map(pick).filter((value) => value !== null).reduce((sum, value) => sum + value, 0);
const worst = (all, pick) => all.map(pick).reduce((most, value) => Math.max(most, value ?? 0), 0);
const open = ({ now }) => total(Object.values(now.connections.open), (value) => value);
const deliveries = perSecond((figures) => figures.delivery.deliveries);
const publishes = perSecond((figures) => figures.publishes.taken);
const outboxes = ({ now }) => now.waiting.outboxes + now.waiting.sweep;
const memory = ({ now }) => now.process.memory_bytes;
const lag = ({ now }) => now.loop.worst_s;
const redis = ({ now }) => now.redis.lag_s;

/** What a histogram has counted since an older reading of it. */
const added = (now, before) => ({ bounds: now.bounds, counts: now.counts.map((value, i) => Math.max(0, value - (before?.counts[i] ?? 0))) });

/** Of histograms together: what a part of all is no more than; null where there is nothing. */
function quantile(histograms, part) {
  const [{ bounds } = {}] = histograms;
  if (!bounds) return null;
  const counts = [...bounds, 0].map((_, i) => total(histograms, (one) => one.counts[i]));
  let left = part * total(counts, (value) => value);
  if (!left) return null;
  for (let i = 0; i < bounds.length; i += 1) {
    if (left <= counts[i]) return (i ? bounds[i - 1] : 0) + (left / counts[i]) * (bounds[i] - (i ? bounds[i - 1] : 0));
    left -= counts[i];
  }
  return bounds.at(-1);
}
const latency = ({ now, window }) => added(now.delivery.latency_s, window?.delivery.latency_s);

const summed = (values) => total(values, (value) => value);
const CHARTS = [
  { title: "Connections", format: count, stacked: true, total: summed, sum: byWire, each: open },
  { title: "Deliveries per second", format: rate, total: summed, sum: (all) => ({ all: total(all, deliveries) }), each: deliveries },
  { title: "Publishes per second", format: rate, total: summed, sum: (all) => ({ all: total(all, publishes) }), each: publishes },
  { title: "Publish → socket", format: seconds, least: 0.001, sum: percentiles, each: (worker) => quantile([latency(worker)], 0.99) },
  { title: "Loop lag, worst", format: seconds, least: 0.001, sum: (all) => ({ all: worst(all, lag) }), each: lag },
  { title: "Redis, there and back", format: seconds, least: 0.001, sum: (all) => ({ all: worst(all, redis) }), each: redis },
  { title: "Waiting for slow readers", format: bytes, least: 4096, base: 1024, total: summed, sum: (all) => ({ all: total(all, outboxes) }), each: outboxes },
  { title: "Memory", format: bytes, least: 1024 ** 2, base: 1024, total: summed, sum: (all) => ({ all: total(all, memory) }), each: memory },
];

function byWire(all) {
  const sums = {};
  for (const { now } of all) for (const [wire, value] of Object.entries(now.connections.open)) if (value) sums[wire] = (sums[wire] ?? 0) + value;
  return Object.keys(sums).length ? sums : { none: 0 };
}
function percentiles(all) {
  const histograms = all.map(latency);
  return { median: quantile(histograms, 0.5), "99 %": quantile(histograms, 0.99) };
}

const charts = CHARTS.map(({ sum, each, ...options }) => {
  $("charts").append($("chart").content.cloneNode(true));
  return { sum, each, chart: new Chart($("charts").lastElementChild, options) };
});
const split = () => document.querySelector("[name=split]:checked").value;

/** By uid: {uid, name, at} and figures: now, of the reading before, of the oldest one that is kept, and all of those (null for none). */
const workers = new Map();

function takeFigures({ t, workers: told, silent, trouble }) {
  for (const { uid, name, figures } of told) {
    const known = workers.get(uid) ?? { name, readings: [] };
    const readings = [...known.readings, figures].slice(-WINDOW - 1);
    workers.set(uid, { uid, name, now: figures, before: known.now ?? null, window: readings[0] === figures ? null : readings[0], readings, at: t });
  }
  for (const [uid, { at }] of workers) if (t - at > KNOWN_MS && !silent.includes(uid)) workers.delete(uid);
  const all = [...workers.values()].filter(({ at }) => t - at <= KNOWN_MS).sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  for (const { chart, sum, each } of charts) {
    chart.add("sum", t, sum(all));
    chart.add("worker", t, Object.fromEntries(all.map((worker) => [short(worker.name, all), each(worker)])));
  }
  drawAll(t);
  showWorkers(all.filter(({ uid }) => !silent.includes(uid)), silent);
  $("total-connections").textContent = count(total(all, open));
  $("total-deliveries").textContent = rate(total(all, deliveries));
  $("total-publishes").textContent = rate(total(all, publishes));
  $("total-workers").textContent = silent.length ? `${told.length} of ${told.length + silent.length}` : String(told.length);
  const words = [trouble, silent.length && `${plural(silent.length, "worker")} did not answer within a second.`].filter(Boolean).join(" ");
  if ($("trouble").textContent !== words) $("trouble").textContent = words;
}

/** "host:3" as "3" where all are of one host. */
function short(name, all) {
  const hosts = new Set(all.map((worker) => worker.name.replace(/:\d+$/, "")));
  return hosts.size > 1 ? name : `worker ${name.split(":").at(-1)}`;
}

function drawAll(ms) {
  if (document.hidden) return;
  for (const { chart } of charts) {
    chart.show(split());
    chart.draw(ms);
  }
}
for (const input of document.querySelectorAll("[name=split]")) input.addEventListener("change", () => drawAll(Date.now()));
addEventListener("resize", () => drawAll(charts[0].chart.drawnAt ?? Date.now()));

function showWorkers(all, silent) {
  const lines = all.map((worker) => {
    const { name, now } = worker;
    const head = element("th", name);
    head.scope = "row";
    return row(
      head, String(now.pid), number(count(open(worker))), number(count(now.subscriptions)), number(count(now.channels)),
      number(rate(deliveries(worker) ?? 0)), number(rate(publishes(worker) ?? 0)), number(seconds(lag(worker))),
      number(bytes(outboxes(worker))), number(bytes(memory(worker))), number(age(now.uptime_s)),
    );
  });
  for (const uid of silent) {
    const cell = element("td", `${workers.get(uid)?.name ?? uid} does not answer`, "trouble");
    cell.colSpan = 11;
    lines.push(row(cell));
  }
  $("workers").replaceChildren(...lines);
}

/** Ask, and put what went wrong into a note. */
async function ask(note, method, data) {
  try {
    return await link.ask(method, data);
  } catch (error) {
    note.textContent = error.message;
    return null;
  }
}

// Channels.

let channelsAsked = 0;

async function searchChannels() {
  const asked = ++channelsAsked;
  const text = $("pattern").value.trim();
  const pattern = !text || /[*?[]/.test(text) ? text : `*${text}*`;
  const found = await ask($("channels-note"), "busiest", { pattern });
  if (!found || asked !== channelsAsked) return;
  $("channels-count").textContent = count(found.total);
  const note = found.channels.length < found.total ? `The ${found.channels.length} with the most subscribers.` : found.total ? "" : "No channel has subscribers.";
  if ($("channels-note").textContent !== note) $("channels-note").textContent = note;
  const most = Math.max(1, ...found.channels.map(([, subscribers]) => subscribers));
  const focused = document.activeElement?.dataset?.channel;
  $("channels").replaceChildren(...found.channels.map(([name, subscribers]) => {
    const head = element("th", name, "name");
    head.scope = "row";
    const bar = element("span", "", "bar");
    bar.append(element("i"));
    bar.firstChild.style.width = `${(100 * subscribers) / most}%`;
    const cell = number(count(subscribers));
    cell.append(bar);
    const act = button("Trace", `Trace channel ${name}`, () => startTrace("channel", name));
    act.dataset.channel = name;
    const publish = button("Publish", `Publish to ${name}`, () => {
      $("publish-channel").value = name;
      $("publish-data").focus();
    });
    const acts = element("td", "", "acts");
    acts.append(act, " ", publish);
    return row(head, cell, acts);
  }));
  if (focused !== undefined) document.querySelector(`[data-channel="${CSS.escape(focused)}"]`)?.focus();
}

$("find-channels").addEventListener("submit", (event) => {
  event.preventDefault();
  searchChannels();
});
// What they do changes all the time; whoever is about to press a button there is left in peace.
setInterval(() => state === "connected" && !document.hidden && !$("channels").matches(":hover, :focus-within") && searchChannels(), 5000);

// Connections.

let search = {};
let connectionsAsked = 0;

async function searchConnections(after = "") {
  const asked = ++connectionsAsked;
  const found = await ask($("connections-note"), "connections", { ...search, limit: PAGE, ...(after && { after }) });
  if (!found || asked !== connectionsAsked) return;
  const all = Object.entries(found.connections);
  $("connections").replaceChildren(...all.map(([client, one]) => connectionRow(client, one)));
  const silent = found.silent_nodes ? ` ${plural(found.silent_nodes.length, "worker")} did not answer.` : "";
  $("connections-note").textContent = (all.length ? `${plural(all.length, "connection")}${found.next ? ", and there are more" : ""}` : "Nobody") + "." + silent;
  $("next-page").hidden = !found.next;
  $("next-page").onclick = () => searchConnections(found.next);
  $("first-page").hidden = !after;
  $("disconnect-all").hidden = !search.user || !all.length;
  $("disconnect-all").textContent = `Disconnect all of ${search.user}`;
}

function connectionRow(client, one) {
  const user = element("th", one.user || "anonymous", one.user ? "name" : "name quiet");
  user.scope = "row";
  const names = one.channels.slice(0, MAX_LISTED);
  const channels = element("td", names.join(", "), "names");
  if (one.num_channels > names.length) channels.append(element("span", `${names.length ? " and " : ""}${plural(one.num_channels - names.length, "channel")} more`, "quiet"));
  channels.title = one.channels.join("\n");
  const acts = element("td", "", "acts");
  const whose = one.user ? `${one.user}, ${client}` : client;
  acts.append(
    button("Trace", `Trace ${whose}`, () => startTrace("client", client)), " ",
    button("Disconnect", `Disconnect ${whose}`, () => disconnect({ client }, `Disconnect client ${client}${one.user ? ` of ${one.user}` : ""}?`), "danger"),
  );
  return row(user, element("td", client, "id"), one.transport, element("td", one.address, "id"), number(age(one.age_s)), channels, number(bytes(one.outbox_bytes)), acts);
}

$("find-connections").addEventListener("submit", (event) => {
  event.preventDefault();
  const whom = $("whom").value.trim();
  search = whom ? { [$("by").value]: whom } : {};
  searchConnections();
});
$("first-page").addEventListener("click", () => searchConnections());
$("disconnect-all").addEventListener("click", () => disconnect({ user: search.user }, `Disconnect all clients of ${search.user}?`));

/** With 3503, upon which clients stay away. */
function disconnect(whom, question) {
  $("confirm-text").textContent = question;
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  $("confirm").onclose = async () => {
    if ($("confirm").returnValue !== "yes") return;
    const done = await ask($("connections-note"), "disconnect", whom);
    if (!done) return;
    await searchConnections();
    $("connections-note").textContent = `${plural(done.num_clients, "client")} disconnected.`;
  };
}

// Test publish.

$("publish").addEventListener("submit", async (event) => {
  event.preventDefault();
  const result = $("publish-result");
  let data;
  try {
    data = JSON.parse($("publish-data").value);
  } catch (error) {
    result.textContent = `Not JSON: ${error.message}`;
    return;
  }
  result.textContent = "…";
  const began = performance.now();
  const done = await ask(result, "publish", { channel: $("publish-channel").value, data });
  if (done) result.textContent = `Published in ${seconds((performance.now() - began) / 1000)}${done.offset ? `, offset ${done.offset}` : ""}.`;
});

// Trace.

let tracing = null; // {channel, rows}

async function startTrace(kind, name) {
  [$("trace-kind").value, $("trace-name").value] = [kind, name];
  $("trace-title").scrollIntoView({ block: "start" });
  if (tracing) endTrace("");
  const note = $("trace-note");
  note.textContent = "Starting …";
  const found = await ask(note, "trace", { kind, name, payloads: $("trace-payloads").checked });
  if (!found) return;
  $("rows").replaceChildren();
  tracing = { channel: found.channel, of: `${$("trace-kind").selectedOptions[0].textContent.toLowerCase()} ${name}`, count: 0, cut: 0 };
  $("trace-stop").hidden = false;
  try {
    await link.subscribe(found.channel, takeTrace);
  } catch (error) {
    endTrace(error.message);
  }
}

function takeTrace({ rows = [], cut = 0, left_s: leftS, tapped, full, trouble }) {
  if (!tracing) return;
  tracing.count += rows.length;
  tracing.cut += cut;
  const lines = $("rows");
  lines.prepend(...rows.map(traceRow).reverse());
  while (lines.childElementCount > MAX_ROWS) lines.lastElementChild.remove();
  if (leftS === 0) return endTrace("Five minutes are over. ");
  if (leftS !== undefined) tracing.said = trouble ?? `${full ? "Some workers have as many traces as they may. " : ""}${plural(tapped, tracing.of.startsWith("channel") ? "subscriber" : "connection")}, ${leftS} s left`;
  $("trace-note").textContent = `Tracing ${tracing.of}: ${tracing.said ?? ""}; ${plural(tracing.count, "row")}${tracing.cut ? `, ${count(tracing.cut)} more left out` : ""}.`;
}

function traceRow({ t, dir, what, channel, client = "", user = "", bytes: size, subscribers, payload = "" }) {
  const time = new Date(t).toISOString().slice(11, 23);
  const way = { in: "→ hub", out: "← hub" }[dir] ?? "";
  const who = [user, client.slice(0, 8), subscribers !== undefined && `to ${plural(subscribers, "subscriber")}`].filter(Boolean).join(" ");
  return row(element("td", time, "id"), element("td", way, `way-${dir}`), what, element("td", channel, "name"), who, number(size ? bytes(size) : ""), element("td", payload, "payload"));
}

function endTrace(text) {
  if (!tracing) return;
  if (state === "connected") link?.unsubscribe(tracing.channel);
  else link?.forget(tracing.channel);
  $("trace-note").textContent = `${text}${text && !text.endsWith(" ") ? " " : ""}${plural(tracing.count, "row")} of ${tracing.of}.`;
  tracing = null;
  $("trace-stop").hidden = true;
}

$("trace").addEventListener("submit", (event) => {
  event.preventDefault();
  startTrace($("trace-kind").value, $("trace-name").value.trim());
});
$("trace-stop").addEventListener("click", () => {
  endTrace("Stopped.");
  $("trace-start").focus();
});

const kept = sessionStorage.getItem(KEPT);
if (kept) signIn(kept);
else $("key").focus();
