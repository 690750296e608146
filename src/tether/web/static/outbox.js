// Judgments on their way to the server. Each stays in this browser until the server has it, over a
// reload too, and each has a number of its own, so that one sent twice is stored once.

"use strict";

const RETRY_FROM = 1000, RETRY_TO = 30000; // milliseconds
const FINAL = [400, 404, 413]; // statuses that would be the same another time

// One request; never throws. Status 0: there was no answer.
async function ask(url, csrf, body) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": csrf };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : {};
  try {
    const response = await fetch(url, { ...options, signal: AbortSignal.timeout(20000) });
    const wait = 1000 * Number(response.headers.get("Retry-After"));
    const content = await response.json();
    return { status: response.status, body: content, wait, error: `the server says: ${content.error}` };
  } catch {
    return { status: 0, error: "the server cannot be reached. It is tried again by itself." };
  }
}

class Outbox {
  // `send` sends an entry and gives the reply, `taken` hears of a reply that was good, `retry` is
  // called when it is time to try again, `changed` whenever there is something else to tell.
  constructor(prefix, { send, taken, retry, changed }) {
    Object.assign(this, { prefix, send, taken, retry, changed });
    this.entries = this.stored();
    this.trouble = this.refusal = "";
    this.failures = this.timer = 0;
    this.sending = false;
  }

  stored() {
    try {
      const names = Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
      return names.map((name) => JSON.parse(localStorage[name])).sort((a, b) => a.at - b.at);
    } catch {
      return []; // no storage in this browser: entries last as long as the page
    }
  }

  add(entry) {
    this.entries.push(entry);
    this.refusal = "";
    try {
      localStorage[this.prefix + entry.answer.submission] = JSON.stringify(entry);
    } catch {}
  }

  remove(entry) {
    this.entries.splice(this.entries.indexOf(entry), 1);
    try {
      localStorage.removeItem(this.prefix + entry.answer.submission);
    } catch {}
  }

  // Send everything, the oldest first; stop at the first trouble.
  async flush() {
    if (this.sending) return;
    this.sending = true;
    while (this.entries.length) {
      const [entry] = this.entries;
      const reply = await this.send(entry);
      if (reply.status !== 200 && !FINAL.includes(reply.status)) {
        this.later(reply);
        break;
      }
      this.remove(entry);
      this.reached();
      if (reply.status === 200) this.taken(reply.body);
      else this.refusal = `A judgment was refused: ${reply.error}`;
    }
    this.sending = false;
    this.changed();
  }

  reached() {
    this.failures = 0;
    this.trouble = "";
  }

  later({ error, wait }) {
    this.trouble = error;
    clearTimeout(this.timer);
    this.timer = setTimeout(this.retry, wait || Math.min(RETRY_FROM * 2 ** this.failures++, RETRY_TO));
    this.changed();
  }

  // What to tell the person; "" when all is well.
  message() {
    if (!this.trouble) return this.refusal;
    const count = this.entries.length;
    if (!count) return `No new item: ${this.trouble}`;
    return `${count === 1 ? "1 judgment" : `${count} judgments`} not saved yet: ${this.trouble}`;
  }
}
