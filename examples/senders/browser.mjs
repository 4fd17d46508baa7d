// A page's events: sent as JSON arrays by fetch, and the last ones by sendBeacon when the page goes away.
//
//     import { Events } from "./browser.mjs";
//     const events = new Events("https://ingest.example.com/payloads", TOKEN);
//     events.push({ type: "click", at: Date.now() });
//
// Run by the tests with Node 18 or newer, where a stand-in sends the beacons.
//
// The server needs CORS_ORIGINS with the page's origin, and for beacons TOKEN_IN_QUERY=on, because a beacon cannot have
// headers. Whoever can open the page can read the token: give it a `rate` of its own.

const BATCH_MAX = 100; // events per request
const WAIT_MS = 2000; // until a request, if it is not full
const KEPT_MAX = 10000; // while the server takes nothing; then the oldest are dropped
const BEACON_BYTES_MAX = 60 * 1024; // a browser queues 64 KiB for all beacons of a page
const BACKOFF_MAX_MS = 60000;

export class Events {
  #url;
  #token;
  #kept = []; // not sent yet
  #sending = null;
  #timer = null;

  constructor(url, token) {
    this.#url = url;
    this.#token = token;
    // Fires on mobile browsers too when a page is left, unlike `unload`.
    globalThis.document?.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.beacon();
    });
  }

  push(event) {
    this.#kept.push(JSON.stringify(event));
    if (this.#kept.length > KEPT_MAX) this.#kept.shift();
    if (this.#kept.length >= BATCH_MAX) this.flush();
    else this.#timer ??= setTimeout(() => this.flush(), WAIT_MS);
  }

  /** Sends what is kept; the promise is kept once nothing is left or the server refuses it for good. */
  flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#sending ??= this.#send().finally(() => (this.#sending = null));
    return this.#sending;
  }

  async #send() {
    for (let attempt = 0; this.#kept.length > 0; ) {
      // Taken out first: a beacon must not send them, too.
      const batch = this.#kept.splice(0, BATCH_MAX);
      const { status, retryAfter } = await this.#post(`[${batch.join(",")}]`);
      if (status === 200) {
        attempt = 0;
      } else if (status === 408 || status === 429 || status === 503) {
        // Nothing was admitted: they may be sent again.
        this.#kept.unshift(...batch);
        const backoff = Math.random() * Math.min(BACKOFF_MAX_MS, 500 * 2 ** attempt++);
        await new Promise((done) => setTimeout(done, retryAfter > 0 ? 1000 * retryAfter + Math.random() * 250 : backoff));
      } else {
        // Refused for good, or unknown (0: no answer; 502, 504): sent again, they could be stored twice.
        console.warn(`${batch.length} events given up: ${status}`);
      }
    }
  }

  async #post(body) {
    try {
      const response = await fetch(this.#url, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${this.#token}` },
        body,
        credentials: "omit",
        signal: AbortSignal.timeout(60000), // longer than the server's ACK_TIMEOUT
      });
      await response.text();
      return { status: response.status, retryAfter: Number(response.headers.get("retry-after")) };
    } catch {
      return { status: 0, retryAfter: 0 };
    }
  }

  /** Hands what is kept to the browser, which sends it after the page is gone. Nobody reads the answers. */
  beacon() {
    const url = `${this.#url}?token=${encodeURIComponent(this.#token)}`;
    while (this.#kept.length > 0) {
      let [count, bytes] = [0, 2];
      while (count < this.#kept.length) {
        const more = new TextEncoder().encode(this.#kept[count]).length + 1;
        if (count > 0 && bytes + more > BEACON_BYTES_MAX) break;
        bytes += more;
        count += 1;
      }
      // `text/plain` needs no preflight, for which a page that goes has no time. The server sees the `[`.
      const body = new Blob([`[${this.#kept.slice(0, count).join(",")}]`], { type: "text/plain" });
      if (!navigator.sendBeacon(url, body)) return; // the browser's queue is full
      this.#kept.splice(0, count);
    }
  }
}
