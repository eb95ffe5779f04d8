/* Conversations: a room, or what two people say to each other.

   Does: keep messages once, however often they come; how far each has come; who is here and who types.
   Does not: send, receive or show any of it (chat.js).
   Never break: a message's state never goes back, whatever order marks and messages come in.

   A message: {id, user, text, at, state}, and `peer` in direct ones. state: "sending", "failed" with `why`, "sent", and of
   direct ones "delivered", "read". asked: as it is about to be marked.
*/

const RANK = { failed: 0, sending: 0, sent: 1, delivered: 2, read: 3 };
const EARLY = 1000;

export class Conversation {
  messages = [];
  byId = new Map();
  /** user → until when, in ms of Date.now(). */
  people = new Map();
  typing = new Map();
  unread = 0;
  /** What has been written and not sent. */
  draft = "";
  /** The id of the message before which some are missing. */
  gap = "";
  /** Marks that have overtaken their messages, by id. */
  #early = new Map();

  /** me: whose page this is. */
  constructor(key, me) {
    this.key = key;
    this.isRoom = key[0] === "#";
    this.name = key.slice(1);
    this.channel = this.isRoom ? `chat:${this.name}` : `me:#${me}`;
    this.signs = this.isRoom ? `signs:${this.name}` : `signs:#${[me, this.name].sort().join(",")}`;
  }

  /** Whether it is new. One that is known may have come further. */
  add(message) {
    const known = this.byId.get(message.id);
    if (known) {
      if (known.state === "sending" || known.state === "failed") Object.assign(known, message);
      return false;
    }
    const mark = this.#early.get(message.id);
    if (mark) advance(message, mark.by, mark.state);
    this.#early.delete(message.id);
    this.byId.set(message.id, message);
    this.messages.push(message);
    return true;
  }

  /** How far a message has come, as `by` says; whether that is news. One that has not come yet will have it. */
  mark(id, by, state) {
    const message = this.byId.get(id);
    if (message) return advance(message, by, state);
    this.#early.set(id, { by, state });
    if (this.#early.size > EARLY) this.#early.delete(this.#early.keys().next().value);
    return false;
  }

  /** Messages of the other's that nobody has marked so yet, or is about to. */
  unmarked(state) {
    const isDue = ({ user, state: now, asked }) => user === this.name && Math.max(RANK[now] ?? 0, RANK[asked] ?? 0) < RANK[state];
    return this.messages.filter(isDue);
  }
}

/** Nobody marks messages of its own, and no message goes back. */
function advance(message, by, state) {
  const isFurther = by !== message.user && (RANK[state] ?? 0) > (RANK[message.state] ?? 0);
  if (isFurther) message.state = state;
  return isFurther;
}
