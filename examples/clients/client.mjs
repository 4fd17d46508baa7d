#!/usr/bin/env node
// Sends JSON values, one a line on standard input, to a millrace server, and retries as docs/clients.md says.
//
//     client.mjs [--form FORM] [--ack LEVEL] [--token TOKEN] [--resend-undecided] [--attempts N] URL < payloads.ndjson
//
// Exit status: 0 all accepted, 1 refused, 2 usage, 3 not admitted in time, 4 undecided. Node 18.11 or newer, no packages.

import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

const PAYLOADS_MAX = 500; // per request
const BYTES_MAX = 512 * 1024; // per request; the server's MAX_LENGTH is 1 MiB by default
const ANSWER_TIMEOUT_MS = 60_000; // longer than the server's ACK_TIMEOUT of 30 s
const BACKOFF_FIRST_MS = 100;
const BACKOFF_MAX_MS = 10_000;
const JITTER_MAX_MS = 250; // on top of what the server asked for
// How payloads are put together: content type, what stands before, between and after them.
const FORMS = {
  collection: ["application/json", '{"data":[', ",", "]}"],
  array: ["application/json", "[", ",", "]"],
  lines: ["application/x-ndjson", "", "\n", "\n"],
};
// An answer that new attempts would get as well.
const HOPELESS = new Set([400, 401, 404, 405, 413, 415, 431, 501]);
// No connection came about: the server has seen nothing of the request.
const NOT_SENT = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "ENETUNREACH", "UND_ERR_CONNECT_TIMEOUT"]);

/** The request is not known to be accepted; `status` is the exit status. */
class Failed extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** One attempt: its status (0 without an answer), what the server said, and whether it can have seen the request. */
async function post(url, headers, body) {
  try {
    // fetch keeps connections, and gives up idle ones after 4 s: long before the server does.
    const signal = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
    const response = await fetch(url, { method: "POST", headers, body, signal, redirect: "error" });
    const text = await response.text();
    return { status: response.status, text, retryAfter: response.headers.get("retry-after"), sent: true };
  } catch (error) {
    const code = error.cause?.code ?? error.name;
    return { status: 0, text: `no answer: ${code}`, retryAfter: null, sent: !NOT_SENT.has(code) };
  }
}

/** Sends JSON texts as one request, and returns once they are accepted; otherwise throws `Failed`. */
async function send(options, payloads) {
  const [contentType, before, between, after] = FORMS[options.form];
  const body = before + payloads.join(between) + after;
  const headers = { "content-type": contentType };
  if (options.ack) headers["millrace-ack"] = options.ack;
  if (options.token) headers.authorization = `Bearer ${options.token}`;
  let undecided = false; // some attempt may have been admitted
  let why = "";
  let wait = 0;
  for (let attempt = 0; attempt < options.attempts; attempt++) {
    if (attempt > 0) {
      // What the server asked for and a little more, or full jitter if it did not.
      const most = wait > 0 ? JITTER_MAX_MS : Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** attempt);
      const pause = wait + Math.random() * most;
      console.error(`${why}; attempt ${attempt + 1} in ${Math.round(pause)} ms`);
      await sleep(pause);
    }
    wait = 0;
    const { status, text, retryAfter, sent } = await post(options.url, headers, body);
    why = `${status || "-"}: ${text}`;
    if (status === 200) return;
    if (HOPELESS.has(status)) throw new Failed(1, why);
    // Everything was admitted, and some of it went to the server's dead letters.
    if (status === 502 && text.includes('"accepted":')) throw new Failed(1, why);
    if (!sent) continue;
    if (status === 408 || status === 429 || status === 503) {
      // Nothing was admitted: sending it again makes no duplicates.
      wait = /^\d+$/.test(retryAfter ?? "") ? 1000 * Number(retryAfter) : 0;
      continue;
    }
    // 504, a lost connection, or a gateway's own error: it may be admitted or not.
    undecided = true;
    if (!options.resendUndecided) throw new Failed(4, why);
  }
  throw new Failed(undecided ? 4 : 3, `${why}; ${options.attempts} attempts`);
}

/** Groups of lines that fit into one request. */
async function* collections(lines) {
  let group = [];
  let size = 0;
  for await (const text of lines) {
    const line = text.trim();
    if (!line) continue;
    const bytes = Buffer.byteLength(line);
    if (group.length > 0 && (group.length >= PAYLOADS_MAX || size + bytes > BYTES_MAX)) {
      yield group;
      group = [];
      size = 0;
    }
    group.push(line);
    size += bytes + 1;
  }
  if (group.length > 0) yield group;
}

function readOptions() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        form: { type: "string", default: "collection" },
        ack: { type: "string" },
        token: { type: "string" },
        "resend-undecided": { type: "boolean", default: false },
        attempts: { type: "string", default: "8" },
      },
    });
    const attempts = Number(values.attempts);
    if (positionals.length !== 1 || !(attempts > 0)) throw new Error("one URL is wanted");
    if (!Object.hasOwn(FORMS, values.form)) throw new Error(`--form is one of ${Object.keys(FORMS).join(", ")}`);
    // Other users of the host see arguments, but not the environment.
    const { form, ack, token = process.env.MILLRACE_TOKEN } = values;
    return { url: positionals[0], form, ack, token, attempts, resendUndecided: values["resend-undecided"] };
  } catch (error) {
    console.error(`client.mjs [--form FORM] [--ack LEVEL] [--token TOKEN] [--resend-undecided] [--attempts N] URL: ${error.message}`);
    process.exit(2);
  }
}

const options = readOptions();
let accepted = 0;
try {
  for await (const payloads of collections(createInterface({ input: process.stdin }))) {
    await send(options, payloads);
    accepted += payloads.length;
  }
  console.error(`${accepted} payloads accepted`);
} catch (error) {
  if (!(error instanceof Failed)) throw error;
  console.error(`${accepted} payloads accepted, then: ${error.message}`);
  process.exitCode = error.status;
}
