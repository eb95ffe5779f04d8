/* View: what the page shows of the conversations, and what somebody does with it.

   Does: write rooms, people, messages, marks, typing, toasts; hand out what is typed and pressed.
   Does not: know lines or what messages mean (chat.js).
   Never break: what others wrote becomes text (textContent), never HTML; who reads further up is not scrolled away.
*/

export const byId = (id) => document.getElementById(id);

const CLOCK = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en", { weekday: "long", day: "numeric", month: "long" });
const GROUP_MS = 5 * 60_000;
/** Messages that stand on the page at a time. */
const SHOWN = 300;
const TOAST_MS = 8_000;
const TOASTS = 3;
const TINTS = 8;
const MENTION = /(?<![\w@])(@[A-Za-z0-9][A-Za-z0-9_-]{0,23})/;
const WORDS = { sending: "Sending", failed: "Not sent", sent: "Sent", delivered: "Delivered", read: "Read" };

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** Always the same colour for a name. */
function avatar(user) {
  const made = element("span", "avatar", user.slice(0, 2).toUpperCase());
  const hash = [...user].reduce((sum, letter) => Math.imul(sum ^ letter.codePointAt(0), 16_777_619), 2_166_136_261);
  made.dataset.tint = (hash >>> 8) % TINTS;
  made.setAttribute("aria-hidden", "true");
  return made;
}

/** The text, with names set off. */
function body(text, me) {
  const made = element("p", "text");
  for (const [i, part] of text.split(MENTION).entries()) {
    if (i % 2) made.append(element("b", part.slice(1).toLowerCase() === me ? "mention me" : "mention", part));
    else made.append(part);
  }
  return made;
}

const dayOf = ({ at }) => new Date(at).toDateString();

// The log.

const log = byId("log");
const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
  byId("newest").hidden = true;
}

function entry(message, previous, me, retry) {
  const made = element("li", "message");
  made.dataset.id = message.id;
  const goesOn = previous && previous.user === message.user && message.at - previous.at < GROUP_MS && dayOf(previous) === dayOf(message);
  made.classList.toggle("own", message.user === me);
  if (!goesOn) {
    made.classList.add("first");
    const head = element("p", "head");
    const time = element("time", "", CLOCK.format(message.at));
    time.dateTime = new Date(message.at).toISOString();
    head.append(element("strong", "", message.user === me ? `${me} (you)` : message.user), time);
    made.append(avatar(message.user), head);
  } else {
    made.append(element("span", "unseen", `${message.user}: `));
  }
  made.append(body(message.text, me), state(message, me, retry));
  return made;
}

/** Under one's own messages: how far they have come. */
function state(message, me, retry) {
  const made = element("p", "state");
  if (message.user !== me || !message.state) return made;
  made.dataset.state = message.state;
  if (message.state === "failed") {
    const again = element("button", "", "Try again");
    again.type = "button";
    again.addEventListener("click", () => retry(message));
    made.append(`${WORDS.failed}: ${message.why} `, again);
  } else if (message.peer || message.state === "sending") {
    made.textContent = WORDS[message.state];
  }
  return made;
}

/** All of a conversation. gap: the id of the message before which some are missing. */
export function showLog({ messages, gap }, me, retry) {
  const shown = messages.slice(-SHOWN);
  const rows = [];
  for (const [i, message] of shown.entries()) {
    const previous = shown[i - 1];
    if (message.id === gap) rows.push(element("li", "day", "Some messages before this are not shown"));
    if (!previous || dayOf(previous) !== dayOf(message)) rows.push(element("li", "day", DAY.format(message.at)));
    rows.push(entry(message, previous, me, retry));
  }
  log.setAttribute("aria-busy", "true"); // what was here before is not read aloud again
  log.replaceChildren(...rows);
  requestAnimationFrame(() => log.removeAttribute("aria-busy"));
  scrollToEnd();
}

/** One more at the end. */
export function append(message, previous, me, retry) {
  const stays = !isAtEnd() && message.user !== me;
  if (!previous || dayOf(previous) !== dayOf(message)) log.append(element("li", "day", DAY.format(message.at)));
  log.append(entry(message, previous, me, retry));
  while (log.children.length > SHOWN) log.firstElementChild.remove();
  if (stays) byId("newest").hidden = false;
  else scrollToEnd();
}

/** A message's state has changed. */
export function update(message, me, retry) {
  const end = isAtEnd();
  log.querySelector(`[data-id="${CSS.escape(message.id)}"] .state`)?.replaceWith(state(message, me, retry));
  if (end) scrollToEnd();
}

log.addEventListener("scroll", () => isAtEnd() && (byId("newest").hidden = true), { passive: true });
byId("newest").addEventListener("click", scrollToEnd);
new ResizeObserver(() => byId("newest").hidden && scrollToEnd()).observe(log);

// Rooms and people.

function item({ key, label, unread, current, dot, sign }, open) {
  const made = element("li");
  const button = element("button", "item");
  button.type = "button";
  button.dataset.key = key;
  if (current) button.setAttribute("aria-current", "true");
  const mark = sign ? element("span", "sign", sign) : avatar(label);
  mark.setAttribute("aria-hidden", "true");
  button.append(mark, element("span", "label", label));
  if (dot) {
    const here = element("span", "here", "");
    here.append(element("span", "unseen", " is here"));
    button.append(here);
  }
  if (unread) {
    const badge = element("span", "badge", unread > 99 ? "99+" : String(unread));
    badge.append(element("span", "unseen", " unread"));
    button.append(badge);
  }
  button.addEventListener("click", () => open(key));
  made.append(button);
  return made;
}

/** Focus stays on what it was on, though the list is written anew. */
export function showItems(list, items, open) {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...items.map((one) => item(one, open)));
  if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

export function showHead(title, here, canLeave) {
  byId("title").textContent = title;
  byId("text").placeholder = `Message to ${title}`;
  byId("here").textContent = here;
  byId("leave").hidden = !canLeave;
}

export function showTyping(users) {
  const several = users.length > 2 ? "Several people are typing" : `${users.join(" and ")} ${users.length > 1 ? "are" : "is"} typing`;
  byId("typing").classList.toggle("shown", users.length > 0);
  byId("typists").textContent = users.length ? several : "";
}

export function showUnread(count, title) {
  const badge = byId("menu-badge");
  badge.hidden = !count;
  badge.textContent = count > 99 ? "99+" : String(count);
  document.title = `${count ? `(${count}) ` : ""}${title} · hub chat`;
}

const STATES = { connecting: "Connecting", connected: "Connected", waiting: "Reconnecting", closed: "Disconnected" };

export function showState({ name, text }) {
  document.body.dataset.state = name;
  const word = byId("state");
  // Attempts follow each other while the hub is away; "Reconnecting" is said once.
  if ((name !== "connecting" || word.textContent !== STATES.waiting) && word.textContent !== STATES[name]) word.textContent = STATES[name];
  byId("away").textContent = name === "connected" ? "" : word.textContent;
  byId("detail").textContent = name === "waiting" || name === "closed" ? text : "";
}

/** Something that concerns this user, somewhere else than where the user looks. key: of the conversation, '' for none. */
export function toast(title, text, key, open = () => {}) {
  const made = element("button", "toast");
  made.type = "button";
  made.dataset.of = key;
  made.append(element("strong", "", title), element("span", "", text.slice(0, 140)));
  const all = byId("toasts");
  made.addEventListener("click", () => {
    made.remove();
    open(key);
  });
  all.append(made);
  while (all.children.length > TOASTS) all.firstElementChild.remove();
  // Who reads it keeps it.
  const end = () => (made.matches(":hover, :focus") ? setTimeout(end, TOAST_MS) : made.remove());
  setTimeout(end, TOAST_MS);
}

/** What they told of a conversation is being looked at. */
export function dropToasts(key) {
  for (const made of byId("toasts").querySelectorAll(`[data-of="${CSS.escape(key)}"]`)) made.remove();
}

// The drawer of small screens, the field, the keys.

const isWide = matchMedia("(min-width: 48rem)");
const isMouse = matchMedia("(pointer: fine)");

export function drawer(open) {
  byId("app").classList.toggle("drawer", open);
  byId("menu").setAttribute("aria-expanded", String(open));
  // What is covered can't be reached by keys either.
  byId("talk").inert = open && !isWide.matches;
  byId("side").inert = !open && !isWide.matches;
  if (open) (byId("side").querySelector("[aria-current]") ?? byId("where")).focus();
}

/** Where one writes; on phones not by itself, as the keyboard would cover half of what is there to read. */
export function focusField() {
  if (isMouse.matches) byId("text").focus();
}

function fit() {
  const field = byId("text");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

/** What has been written and not sent: that of one conversation out, that of another one in. */
export function swapDraft(text) {
  const field = byId("text");
  const before = field.value;
  field.value = text;
  fit();
  return before;
}

/** send(text), typing(): while something is being written. */
export function onWrite(send, typing) {
  const field = byId("text");
  const submit = () => {
    const text = field.value.trim();
    if (!text || send(text) === false) return;
    field.value = "";
    fit();
  };
  field.addEventListener("input", () => {
    fit();
    if (field.value.trim()) typing();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  byId("write").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
    field.focus();
  });
}

byId("menu").addEventListener("click", () => drawer(true));
byId("app").addEventListener("click", ({ target }) => target === byId("app") && drawer(false)); // beside the drawer
isWide.addEventListener("change", () => drawer(false));

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || byId("app").hidden) return;
  if (byId("app").classList.contains("drawer")) {
    drawer(false);
    byId("menu").focus();
    return;
  }
  byId("toasts").replaceChildren();
  byId("text").focus();
});
