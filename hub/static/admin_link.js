/* The admin page's connection: the hub's native protocol over WebSocket, with the few commands that /admin/connection has.

   Does: connect with the key, answer pings, come back after a break, match answers to questions, hand on what channels bring.
   Does not: know what is shown (admin.js), or keep the key.
   Never break: the key is in the connect command alone, never in an address; who is closed with 3500 or more stays away.
   See hub/admin.py. */

const FINAL = 3500; // codes from here on: don't come back (hub/errors.py)
const PING_GRACE_MS = 10_000;
const [BACKOFF_MS, BACKOFF_CAP_MS] = [500, 10_000];
const ANSWER_MS = 15_000;

/** What the hub did not do. */
export class Refused extends Error {}

export class Link {
  #key;
  #show;
  #socket = null;
  #asked = new Map(); // settles a question, by its id
  #channels = new Map(); // who takes what a channel brings
  #lastId = 0;
  #timer;
  #watchdog;
  #failures = 0;
  #silenceMs = 0;

  /** key: of the server API. show(state, text): "connecting", "connected", "waiting", "refused". */
  constructor(key, show) {
    this.#key = key;
    this.#show = show;
    this.#open();
  }

  #open() {
    this.#show("connecting", "");
    const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/admin/connection`);
    this.#socket = socket;
    this.#silenceMs = PING_GRACE_MS;
    this.#heard();
    socket.onopen = () => this.#command("connect", { token: this.#key, name: "admin" }).then(({ ping }) => {
      this.#failures = 0;
      this.#silenceMs = ping ? ping * 1000 + PING_GRACE_MS : 0;
      this.#heard();
      for (const channel of this.#channels.keys()) this.#command("subscribe", { channel }).catch(() => this.#again(socket, "subscribing failed"));
      this.#show("connected", "");
    }, () => {}); // its end says why
    socket.onmessage = ({ data }) => this.#receive(String(data));
    socket.onclose = ({ code, reason }) => this.#ended(socket, code, reason);
  }

  #receive(text) {
    this.#heard();
    for (const line of text.split("\n")) {
      const { id, error, push, ...answer } = JSON.parse(line);
      if (id) {
        const asked = this.#asked.get(id);
        this.#asked.delete(id);
        if (error) asked?.fail(new Refused(error.message));
        else asked?.settle(Object.values(answer)[0] ?? {});
      } else if (push?.pub) this.#channels.get(push.channel)?.(push.pub.data);
      else if (push?.unsubscribe) this.#again(this.#socket, "displaced"); // what may be missing is not worth more
      else if (!push) this.#socket.send("{}");
    }
  }

  #command(method, params) {
    return new Promise((settle, fail) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) return fail(new Refused("not connected"));
      const id = ++this.#lastId;
      this.#asked.set(id, { settle, fail });
      setTimeout(() => this.#asked.delete(id) && fail(new Refused("no answer")), ANSWER_MS);
      this.#socket.send(JSON.stringify({ id, [method]: params }));
    });
  }

  /** The result of a method of the hub's; rejects with Refused. */
  async ask(method, data = {}) {
    return (await this.#command("rpc", { method, data })).data;
  }

  /** take(data): each publication of a channel from now on, over other connections, too, unless `once`. */
  async subscribe(channel, take) {
    this.#channels.set(channel, take);
    await this.#command("subscribe", { channel });
  }

  unsubscribe(channel) {
    if (this.#channels.delete(channel)) this.#command("unsubscribe", { channel }).catch(() => {}); // gone with its connection
  }

  /** No more of a channel, without a word to the hub: its connection is over. */
  forget(channel) { this.#channels.delete(channel); }

  #heard() {
    clearTimeout(this.#watchdog);
    const socket = this.#socket;
    if (this.#silenceMs) this.#watchdog = setTimeout(() => this.#again(socket, "the hub fell silent"), this.#silenceMs);
  }

  #again(socket, reason) {
    if (socket !== this.#socket) return;
    socket.onclose = socket.onmessage = socket.onopen = null;
    socket.close();
    this.#ended(socket, 0, reason);
  }

  #ended(socket, code, reason) {
    if (socket !== this.#socket) return;
    this.#leave();
    const text = code >= 3000 ? `${code} ${reason}` : reason;
    if (code >= FINAL) return this.#show("refused", reason || String(code));
    const waitMs = Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_MS * 2 ** this.#failures++) + 200;
    this.#timer = setTimeout(() => this.#open(), waitMs);
    this.#show("waiting", text);
  }

  #leave() {
    clearTimeout(this.#watchdog);
    this.#socket = null;
    for (const { fail } of this.#asked.values()) fail(new Refused("the connection was lost"));
    this.#asked.clear();
  }

  /** Leave nothing behind. */
  close() {
    const socket = this.#socket;
    clearTimeout(this.#timer);
    if (socket) socket.onclose = socket.onmessage = socket.onopen = null;
    socket?.close();
    this.#leave();
  }
}
